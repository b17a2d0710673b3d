"""`diffit sample CHECKPOINT --out DIR`: images from a checkpoint, as files."""

import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from diffit.arguments import read_arguments
from diffit.checkpoint import load, recommended
from diffit.config import Settings, nearest
from diffit.data.images import write_atomic
from diffit.distributed import pick_device
from diffit.drawing import draw_here, draw_in_processes
from diffit.errors import UsageError
from diffit.generation import check
from diffit.model import Model
from diffit.networks.count import count_macs
from diffit.samples import (
    Plan,
    available_cores,
    begin,
    class_names,
    clear_leftovers,
    image_shape,
    missing,
    read_plan,
    versions,
    weights_of,
    write_grid,
    write_index,
    write_npz,
    write_zip,
)
from diffit.sampling import SamplingConfig
from diffit.training.console import duration
from diffit.trajectory import picture, record

SMALL = 1_000_000_000
"""Multiplications a forward pass and image up to which one CPU thread draws."""

IMAGES_IN_PATH = 4
"""How many images `--trajectory` follows."""


class Args(Settings):
    """Draw images from a checkpoint.

    CHECKPOINT is a checkpoint, or the folder of a run, whose newest one is taken. How to draw
    starts from what it recommends. Repeat an interrupted command to continue it.
    """

    checkpoint: Annotated[Path, tyro.conf.Fixed, tyro.conf.Suppress]
    out: Path = Path("samples")
    """Folder for the images."""
    count: int = Field(default=16, gt=0, le=10_000_000)
    """How many images to draw; more than before adds to a folder."""
    labels: str = "all"
    """Classes, drawn in turn: numbers, ranges or names such as 3 or 0-4,cat; all; or none."""
    seed: int = 0
    """Image i is drawn from seed + i."""
    weights: str = ""
    """Set of weights, such as model or ema-0.9999; by default the recommended one."""
    reference: Path | None = None
    """A smaller or less trained checkpoint to guide away from (autoguidance)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    processes: int = Field(default=1, gt=0, le=256)
    """Processes that share the work; the images do not depend on it."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of each process; 0 takes one for a small network, else all cores. The last bit of
    images depends on it."""
    npz: bool = False
    """Also write samples.npz: arr_0 (N, H, W, C) uint8 and arr_1 labels."""
    zip: bool = False
    """Also write samples.zip in EDM's layout, to train or evaluate with."""
    trajectory: bool = False
    """Also write trajectory.png: the denoising path, and attention along it."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = SamplingConfig()


def read(argv: Sequence[str], *, prog: str) -> Args:
    """The arguments; the checkpoint first, since it decides how to draw unless told otherwise."""
    if argv and argv[0] in ("-h", "--help"):
        default = Args(checkpoint=Path("CHECKPOINT"))
        return read_arguments(Args, argv, prog=f"{prog} CHECKPOINT", default=default)
    if not argv or argv[0].startswith("-"):
        raise UsageError(f"{prog} needs a checkpoint or a run as its first argument")
    sampling = recommended(argv[0])
    if "--sampler" in [word.partition("=")[0] for word in argv]:
        sampling = sampling.for_any_sampler()
    default = Args(checkpoint=Path(argv[0]), sampling=sampling)
    return read_arguments(Args, argv[1:], prog=f"{prog} {argv[0]}", default=default)


def run(args: Args) -> None:
    """Refuse what cannot work, draw what is missing, put the pictures together."""
    started = time.monotonic()
    device = pick_device(args.device)
    model = load(args.checkpoint, weights=args.weights or None, device=device)
    reference = None if args.reference is None else load(args.reference, device=device)
    plan = make_plan(args, model, reference)
    begin(args.out, plan)
    todo = missing(args.out, plan, model)
    print(describe(args.checkpoint, plan, todo))
    try:
        draw_missing(args, plan, todo, (model, reference))
    except KeyboardInterrupt:
        clear_leftovers(args.out)
        left = len(missing(args.out, plan, model)) * plan.sampling.unit
        print(
            f"diffit: about {left} of {plan.count} images are still to be drawn; repeat the "
            "command to continue",
            file=sys.stderr,
        )
        raise
    made = finish(args, plan, model, reference)
    spent = duration(time.monotonic() - started)
    print(f"{plan.count} images in {args.out / 'images'}, {', '.join(made)} ({spent})")


def make_plan(args: Args, model: Model, reference: Model | None) -> Plan:
    """What to draw; UsageError if this model cannot."""
    labels = parse_labels(args.labels, model)
    try:
        check(model, args.sampling, reference)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if image_shape(model)[0] not in (1, 3):
        raise UsageError(f"{args.checkpoint} draws {model.shape[0]} channels, which are no picture")
    before = read_plan(args.out)
    plan = Plan(
        weights=weights_of(model),
        reference=None if reference is None else weights_of(reference),
        seed=args.seed,
        labels=labels,
        classes=class_names(model),
        sampling=args.sampling,
        device=model.device.type,
        # A folder goes on with the threads that it was begun with, whatever this machine has.
        threads=args.threads or (before.threads if before else threads_for(model)),
        versions=versions(),
        count=args.count,
        command=shlex.join(["diffit", *sys.argv[1:]]),
    )
    cores = available_cores()
    if plan.device == "cpu" and args.processes * plan.threads > cores:
        print(
            f"diffit: note: {args.processes} processes of {plan.threads} threads are more than "
            f"the {cores} cores of this machine; fewer would be faster",
            file=sys.stderr,
        )
    return plan


def threads_for(model: Model) -> int:
    """CPU threads of a new folder: one for a small network, all cores for a large one.

    A small network gains little from a second thread, and beside a busy neighbour every operation
    of two threads waits for the slower one: 20 times slower in all, measured on two cores.
    """
    return 1 if count_macs(model.config.network) <= SMALL else available_cores()


def parse_labels(text: str, model: Model) -> tuple[int | None, ...]:
    """`3`, `0-4,cat`, `all` or `none` as labels; UsageError for a class that is not there."""
    if text == "all" or not text.strip():
        return tuple(range(model.classes))
    if text == "none":
        return (None,) if model.classes else ()
    if not model.classes:
        raise UsageError(f"--labels {text}: this model was trained without classes; leave it out")
    return tuple(label for part in text.split(",") for label in _labels(part.strip(), model))


def _labels(part: str, model: Model) -> Sequence[int]:
    names = class_names(model)
    if ends := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part):
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not first <= last < model.classes:
            raise UsageError(
                f"--labels {part}: this model has the classes 0 to {model.classes - 1}"
            )
        return range(first, last + 1)
    if part not in names:
        raise UsageError(f"--labels {part!r}: there is no such class; {nearest(part, list(names))}")
    return [names.index(part)]


def describe(checkpoint: Path, plan: Plan, todo: Sequence[int]) -> str:
    """One line on what is about to happen."""
    how = plan.sampling
    guided = f", guidance {how.guidance:g}" if how.guidance != 1 else ""
    left = min(len(todo) * how.unit, plan.count)
    again = "" if left == plan.count else f", {plan.count - left} of them are there already"
    return (
        f"{checkpoint} ({plan.weights.name}): {plan.count} images, "
        f"{how.sampler} in {how.steps} step{'s' * (how.steps > 1)}{guided}{again}"
    )


def draw_missing(
    args: Args, plan: Plan, todo: Sequence[int], models: tuple[Model, Model | None]
) -> None:
    """Draw units with a bar on stderr, which is silent where that is no terminal."""
    if not todo:
        return
    console = Console(file=sys.stderr)
    columns = (TextColumn("drawing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(todo))

        def tell(units: float) -> None:
            bar.advance(task, units)

        if args.processes == 1:
            try:
                draw_here(plan, args.out, todo, models, tell)
            except ValueError as error:
                raise UsageError(f"{error}; try other settings of the sampler") from None
        else:
            draw_in_processes(plan, args.out, todo, args.processes, tell)


def finish(args: Args, plan: Plan, model: Model, reference: Model | None) -> list[str]:
    """Write everything beside the images; the names of what was written."""
    write_index(args.out, plan)
    made = [write_grid(args.out, plan)]
    if args.npz:
        made.append(write_npz(args.out, plan))
    if args.zip:
        made.append(write_zip(args.out, plan))
    if args.trajectory:
        made.append(write_trajectory(args.out, plan, model, reference))
    return [path.name for path in made]


def write_trajectory(out: Path, plan: Plan, model: Model, reference: Model | None) -> Path:
    """The path of the first images, and attention along that of the very first."""
    followed = min(plan.count, IMAGES_IN_PATH)
    path = record(
        model,
        range(plan.seed, plan.seed + followed),
        labels=[plan.label(i) for i in range(followed)],
        settings=plan.sampling,
        reference=reference,
    )
    write_atomic(out / "trajectory.png", picture(path))
    return out / "trajectory.png"
