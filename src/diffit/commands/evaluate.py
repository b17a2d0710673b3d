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

from diffit.commands.evaluate_bits import measure_bits
from diffit.commands.evaluate_pairs import measure_pairs
from diffit.config import Settings
from diffit.data import Dataset, open_images
from diffit.distributed import pick_device
from diffit.errors import UsageError
from diffit.evaluation import (
    EvaluationConfig,
    compare,
    measure_samples,
    open_cache,
    open_features,
    plan_all,
)
from diffit.evaluation.cache import FeatureCache
from diffit.evaluation.dino import LARGE
from diffit.evaluation.features import Extractor
from diffit.evaluation.measuring import Request, measure_all
from diffit.evaluation.passport import Passport, read_generation, write_passport
from diffit.evaluation.pixels import named_protocols
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
    """What turns images into vectors: inception (FID), inception-768 and other early layers,
    dinov2, or the small classifiers digits-cnn and patches-cnn, which ship with the package;
    several with commas between them are measured in one pass."""
    protocol: str = "pytorch-fid"
    """How images are resized for Inception: adm, pytorch-fid, clean, edm, several with commas
    between them, or all. Figures of different protocols do not compare."""
    weights: Path | None = None
    """File of Inception's weights, .pth as pytorch-fid has it or .safetensors."""
    dino: str = LARGE
    """Folder or hub id of DINOv2's weights."""
    download: bool = False
    """Fetch weights that are not on this machine: Inception's 91 MiB, DINOv2's 1.2 GB."""
    processes: int = Field(default=1, ge=1, le=1024)
    """Compute features in so many processes with one thread each; on a CPU."""
    cache: bool = True
    """Keep the features of Inception and DINOv2, and use those that were kept."""
    size: int | None = Field(default=None, ge=1, le=4096)
    """Crop and resize the reference to this side, as training does."""
    channels: Literal[1, 3] | None = None
    """Convert samples and reference to grey (1) or RGB (3)."""
    pairs: Path | None = None
    """Folder of the originals of SAMPLES, a folder of restored images with the same file names."""
    convention: str = "zero-shot"
    """--pairs: borders, channels and range, as in zero-shot, super-resolution, derain."""
    factor: int = 1
    """--pairs: the factor of a super-resolution, so many pixels of border are cut."""
    lpips_weights: Path | None = None
    """--pairs: torchvision's state dict of the backbone of LPIPS, which is measured then."""
    lpips_backbone: Literal["alex", "vgg", "squeeze"] = "alex"
    """--pairs: which backbone that is."""
    model: str | None = None
    """Run, checkpoint or hub id whose bits per dimension of SAMPLES are measured: --metrics bpd."""
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
    if args.pairs is not None:
        _pairs(args, args.pairs)
        return
    if args.model is not None or "bpd" in (args.measure.metrics or ()):
        _bits(args)
        return
    _check_files(args)
    extractors = _extractors(args)
    _check_layout(args, extractors)
    images, record = find_samples(args.samples)
    generation = read_generation(record)
    samples = open_images(images, channels=args.channels)
    _check_complete(args.samples, samples, generation)
    reference = None if args.reference is None else _open_reference(args, args.reference)
    cache = open_cache() if args.cache else None
    if reference is None:
        _only_statistics(args, extractors[0], samples, cache)
    else:
        _compare(args, extractors, samples, reference, generation, cache)
    if cache is not None:
        cache.trim()


def _pairs(args: Args, originals: Path) -> None:
    if args.reference or args.write_statistics or args.model or args.measure.metrics:
        raise UsageError(
            "--pairs is measured alone; leave out --reference, --model, --metrics and the like"
        )
    _check_new(args)
    measure_pairs(
        args.samples,
        originals,
        convention=args.convention,
        factor=args.factor,
        lpips_weights=args.lpips_weights,
        lpips_backbone=args.lpips_backbone,
        out=args.out,
    )


def _bits(args: Args) -> None:
    if args.measure.metrics != ("bpd",):
        raise UsageError("--model is for bits per dimension, measured alone: add --metrics bpd")
    if args.model is None:
        raise UsageError("--metrics bpd needs a model whose likelihood it is; name it with --model")
    if args.reference is not None or args.write_statistics is not None:
        raise UsageError("--metrics bpd compares with nothing; leave out --reference and the like")
    _check_new(args)
    images = open_images(find_samples(args.samples)[0], size=args.size, channels=args.channels)
    measure_bits(
        args.model,
        images,
        path=args.samples,
        out=args.out,
        seed=args.measure.seed,
        device=args.device,
    )


def _compare(
    args: Args,
    extractors: list[Extractor],
    samples: Dataset,
    reference: Dataset | Statistics,
    generation: dict[str, Any],
    cache: FeatureCache | None,
) -> None:
    plans = plan_all(samples, reference, extractors, args.measure)
    with _Bars() as bars:
        ours = measure_samples(
            plans,
            samples,
            path=args.samples,
            spatial=_spatial(args),
            processes=args.processes,
            cache=cache,
            progress=bars.show,
        )
        if args.write_statistics is not None:
            _write(args, args.write_statistics, ours[0].statistics(extractors[0]), samples)
        passport = compare(
            plans,
            ours,
            reference,
            path=str(args.reference),
            generation=generation,
            processes=args.processes,
            cache=cache,
            progress=bars.show,
        )
    if args.out is not None:
        write_passport(args.out, passport)
    show(passport, Console())


def _extractors(args: Args) -> list[Extractor]:
    """Each of the features, Inception's under each of the protocols."""
    device = pick_device(args.device)
    found = []
    for name in dict.fromkeys(part.strip() for part in args.features.split(",")):
        several = name.startswith("inception")
        for protocol in named_protocols(args.protocol) if several else ("pytorch-fid",):
            found.append(
                open_features(
                    name,
                    weights_file=args.weights if several else None,
                    protocol=protocol,
                    dino=args.dino,
                    download=args.download,
                    device=device,
                )
            )
    return found


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
    table.add_column("figure", no_wrap=True)
    several = len(passport.features) > 1
    if several:
        table.add_column("protocol")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("samples", justify="right")
    table.add_column("reference", justify="right")
    for figure in passport.figures:
        span = figure.interval
        table.add_row(
            figure.name,
            *([figure.protocol] if several else []),
            f"{figure.value:.4g}",
            "" if span is None else f"{span.low:.4g} .. {span.high:.4g}",
            str(figure.samples),
            "" if figure.reference is None else str(figure.reference),
        )
    console.print(table)
    for info in passport.features if several else ():
        used = f"; {info.used}" if info.used else ""
        text = f"{info.protocol} ({info.name}): {info.resize}{used}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
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
    _check_new(args)
    if args.write_statistics is not None and args.write_statistics.suffix != ".npz":
        raise UsageError(f"--write-statistics {args.write_statistics} must end in .npz")
    named_protocols(args.protocol)
    if not any(name.strip().startswith("inception") for name in args.features.split(",")):
        if args.weights is not None:
            raise UsageError(f"--weights is for inception; {args.features} does not take it")
        if args.protocol != "pytorch-fid":
            raise UsageError(
                f"--protocol {args.protocol} is for inception; {args.features} has one resizing"
            )
    if args.processes > 1 and pick_device(args.device).type != "cpu":
        raise UsageError("--processes is for CPUs; a GPU is faster alone: leave it out")


def _check_new(args: Args) -> None:
    for option, path in (("--out", args.out), ("--write-statistics", args.write_statistics)):
        if path is not None and path.exists():
            raise UsageError(f"{option} {path} exists already; name a new file")
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first")
        if path is not None and not os.access(path.absolute().parent, os.W_OK):
            raise UsageError(f"{option} {path} cannot be written there; name another folder")


def _check_complete(name: str, samples: Dataset, generation: dict[str, Any]) -> None:
    planned = generation.get("count")
    if isinstance(planned, int) and len(samples) < planned:
        raise UsageError(
            f"{name} holds {len(samples)} of {planned} images; let `diffit sample` finish it first"
        )


def _check_layout(args: Args, extractors: list[Extractor]) -> None:
    if args.write_statistics is not None and len(extractors) > 1:
        raise UsageError(
            "--write-statistics is for one resizing; name one --features and one --protocol"
        )
    if _spatial(args) and (extractors[0].name != "inception" or args.protocol != "adm"):
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
        return open_images(find_samples(name)[0], size=args.size, channels=args.channels)
    statistics = read_statistics(path)
    if not has_examples(path):
        return statistics
    return replace(statistics, images=open_images(name, channels=args.channels, labels=False))


def _only_statistics(
    args: Args, features: Extractor, samples: Dataset, cache: FeatureCache | None
) -> None:
    if args.write_statistics is None:
        raise ValueError("without a reference there must be statistics to write")
    if len(samples) < 2:
        raise UsageError(f"{args.samples} holds one image; statistics need 2 or more")
    with _Bars() as bars:
        (ours,) = measure_all(
            samples,
            [Request(features, groups=1, spatial=_spatial(args))],
            path=args.samples,
            batch=args.measure.batch,
            processes=args.processes,
            cache=cache,
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
