"""`diffit evaluate`: images against a reference, with a passport of what was measured."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from diffit.config import Settings
from diffit.data import Dataset, open_dataset
from diffit.distributed import pick_device
from diffit.errors import UsageError
from diffit.evaluation import EvaluationConfig, compare, measure_samples, open_features, plan
from diffit.evaluation.features import Extractor
from diffit.evaluation.measuring import measure
from diffit.evaluation.passport import Passport, read_generation, write_passport
from diffit.evaluation.protocols import (
    Layout,
    Statistics,
    has_examples,
    is_statistics,
    read_statistics,
    write_statistics,
)
from diffit.samples import RECORD


class Args(Settings):
    """Measure images against a reference: FID, KID, precision, recall, and the like."""

    samples: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    """Images to measure: a folder, zip or npz, or a set of the package such as builtin:digits."""
    reference: str | None = None
    """Real images, or an npz with their statistics (ADM, pytorch-fid or EDM layout)."""
    features: str = "inception"
    """What turns images into vectors: inception (FID), inception-768 and other early layers, or
    the small classifiers digits-cnn and patches-cnn, which ship with the package."""
    protocol: Literal["pytorch-fid", "adm", "edm"] = "pytorch-fid"
    """How images are resized for Inception; figures of different protocols do not compare."""
    weights: Path | None = None
    """File of Inception's weights, .pth as pytorch-fid has it or .safetensors."""
    download: bool = False
    """Fetch Inception's weights (91 MiB) if they are not on this machine."""
    size: int | None = Field(default=None, ge=1, le=4096)
    """Crop and resize the reference to this side, as training does."""
    channels: Literal[1, 3] | None = None
    """Convert samples and reference to grey (1) or RGB (3)."""
    measure: tyro.conf.OmitArgPrefixes[EvaluationConfig] = EvaluationConfig()
    out: Path | None = None
    """New JSON file for the passport: the figures and all that they depend on."""
    write_statistics: Path | None = None
    """New npz file for the statistics of SAMPLES, to serve as a --reference later."""
    layout: Layout = "pytorch-fid"
    """Whose layout that file has."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def run(args: Args) -> None:
    """Refuse what cannot work, measure, write, print."""
    _check_files(args)
    features = open_features(
        args.features,
        weights_file=args.weights,
        protocol=args.protocol,
        download=args.download,
        device=pick_device(args.device),
    )
    _check_layout(args, features)
    images, record = find_samples(args.samples)
    generation = read_generation(record)
    samples = open_dataset(images, channels=args.channels)
    _check_complete(args.samples, samples, generation)
    reference = None if args.reference is None else _open_reference(args, args.reference)
    if reference is None:
        _only_statistics(args, features, samples)
        return
    what = plan(samples, reference, features, args.measure)
    with _Bars() as bars:
        ours = measure_samples(
            what, samples, path=args.samples, spatial=_spatial(args), progress=bars.show
        )
        if args.write_statistics is not None:
            _write(args, args.write_statistics, ours.statistics(features), samples)
        passport = compare(
            what,
            ours,
            reference,
            path=str(args.reference),
            generation=generation,
            progress=bars.show,
        )
    if args.out is not None:
        write_passport(args.out, passport)
    show(passport, Console())


def find_samples(name: str) -> tuple[str, Path | None]:
    """Where the images of ``name`` are, and the record of how they were drawn if there is one.

    A folder written by `diffit sample` holds `samples.json` and the images in a folder below.
    """
    path = Path(name)
    if (path / RECORD).is_file() and (path / "images").is_dir():
        return str(path / "images"), path / RECORD
    beside = path.absolute().parent / RECORD
    ours = path.name == "images" or path.suffix in (".zip", ".npz")
    return name, beside if ours and path.exists() and beside.is_file() else None


def show(passport: Passport, console: Console) -> None:
    """The figures as a table, and what a reader must know of them."""
    table = Table()
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("samples", justify="right")
    table.add_column("reference", justify="right")
    for figure in passport.figures:
        span = figure.interval
        table.add_row(
            figure.name,
            f"{figure.value:.4g}",
            "" if span is None else f"{span.low:.4g} .. {span.high:.4g}",
            str(figure.samples),
            "" if figure.reference is None else str(figure.reference),
        )
    console.print(table)
    for note in passport.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _check_files(args: Args) -> None:
    if args.reference is None and args.write_statistics is None:
        raise UsageError(
            "there is nothing to compare with; name real images with --reference, or a file for "
            "the statistics of SAMPLES with --write-statistics"
        )
    if args.reference is None and args.out is not None:
        raise UsageError("--out is for a comparison; name real images with --reference")
    for option, path in (("--out", args.out), ("--write-statistics", args.write_statistics)):
        if path is not None and path.exists():
            raise UsageError(f"{option} {path} exists already; name a new file")
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first")
        if path is not None and not os.access(path.absolute().parent, os.W_OK):
            raise UsageError(f"{option} {path} cannot be written there; name another folder")
    if args.write_statistics is not None and args.write_statistics.suffix != ".npz":
        raise UsageError(f"--write-statistics {args.write_statistics} must end in .npz")
    if not args.features.startswith("inception"):
        if args.weights is not None:
            raise UsageError(f"--weights is for inception; {args.features} ships with the package")
        if args.protocol != "pytorch-fid":
            raise UsageError(
                f"--protocol {args.protocol} is for inception; {args.features} has one resizing"
            )


def _check_complete(name: str, samples: Dataset, generation: dict[str, Any]) -> None:
    planned = generation.get("count")
    if isinstance(planned, int) and len(samples) < planned:
        raise UsageError(
            f"{name} holds {len(samples)} of {planned} images; let `diffit sample` finish it first"
        )


def _check_layout(args: Args, features: Extractor) -> None:
    if _spatial(args) and (features.name != "inception" or args.protocol != "adm"):
        raise UsageError(
            "--layout adm holds statistics of Inception under ADM's resizing; add --features "
            "inception --protocol adm, or choose --layout pytorch-fid"
        )


def _spatial(args: Args) -> bool:
    """Whether the statistics to be written include the spatial features."""
    return args.write_statistics is not None and args.layout == "adm"


def _open_reference(args: Args, name: str) -> Dataset | Statistics:
    path = Path(name)
    pickled = path.suffix.lower() in (".pkl", ".pickle")
    if not pickled and not (path.is_file() and is_statistics(path)):
        return open_dataset(find_samples(name)[0], size=args.size, channels=args.channels)
    statistics = read_statistics(path)
    if not has_examples(path):
        return statistics
    return replace(statistics, images=open_dataset(name, channels=args.channels, labels=False))


def _only_statistics(args: Args, features: Extractor, samples: Dataset) -> None:
    if args.write_statistics is None:
        raise ValueError("without a reference there must be statistics to write")
    if len(samples) < 2:
        raise UsageError(f"{args.samples} holds one image; statistics need 2 or more")
    with _Bars() as bars:
        ours = measure(
            samples,
            features,
            path=args.samples,
            groups=1,
            spatial=_spatial(args),
            batch=args.measure.batch,
            name="images",
            progress=bars.show,
        )
    _write(args, args.write_statistics, ours.statistics(features), samples)


def _write(args: Args, path: Path, statistics: Statistics, samples: Dataset) -> None:
    write_statistics(path, statistics, args.layout, images=samples)
    print(f"wrote statistics of {statistics.count} images to {path}")


class _Bars:
    """A progress bar for each side, on stderr; silent where that is no terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, name: str, done: int, total: int) -> None:
        """Move the bar ``name`` to ``done`` of ``total``."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done)
