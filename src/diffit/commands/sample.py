"""`diffit sample CHECKPOINT --out DIR`: images from a checkpoint, as files."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diffit.checkpoint import load
from diffit.claims import turn
from diffit.commands.sample_arguments import Args, make_plan, part_of, read
from diffit.commands.sample_progress import Whole, bar, follow
from diffit.distributed import pick_device
from diffit.drawing import draw_here, draw_in_processes, threads
from diffit.errors import DataError, UsageError
from diffit.evaluation.receipt import measure
from diffit.generation import AUTOCAST
from diffit.model import Model
from diffit.products import (
    CHECKSUMS,
    is_current,
    write_checksums,
    write_grid,
    write_index,
    write_npz,
    write_zip,
)
from diffit.samples import (
    Plan,
    begin,
    partial_path,
    read_plan,
    set_rounding,
    settle_codec,
    write_here,
    write_plan,
)
from diffit.training.console import duration
from diffit.trajectory import COLUMNS, picture, record
from diffit.work import check as check_units
from diffit.work import missing, sweep

__all__ = ["Args", "read", "run"]

IMAGES_IN_PATH = 4
"""How many images `--trajectory` follows."""

PAIRS = 16
"""Images that are drawn exactly as well, to measure approximations by."""


def run(args: Args) -> None:
    """Refuse what cannot work, draw what is missing, check it, put the pictures together."""
    started = time.monotonic()
    device = pick_device(args.device)
    # Autocast would make these of the weights again and again, in twice the memory.
    matrices = AUTOCAST[args.sampling.precision]
    model = load(
        args.checkpoint,
        weights=args.weights or None,
        device=device,
        matrices=matrices,
        codec=args.codec or None,
    )
    settle_codec(model)
    if args.rounding is not None:
        set_rounding(model, args.rounding)
    reference = (
        None if args.reference is None else load(args.reference, device=device, matrices=matrices)
    )
    plan = make_plan(args, model, reference)
    units = part_of(args.part, plan)
    begin(args.out, plan)
    sweep(args.out, plan)
    print(describe(args, plan, missing(args.out, plan, units)))
    try:
        write_receipt(args.out, (model, reference))
        complete(args, plan, units, (model, reference))
        left = count_images(plan, missing(args.out, plan, plan.units()))
        if not left and len(units) < len(plan.units()):
            complete(args, plan, plan.units(), (model, reference))
    except KeyboardInterrupt:
        sweep(args.out, plan)
        left = count_images(plan, missing(args.out, plan, units))
        print(
            f"diffit: {left} of {plan.count} images are still to be drawn; repeat the "
            "command to continue",
            file=sys.stderr,
        )
        raise
    if left:
        drawn = count_images(plan, units)
        print(
            f"{drawn} images of part {args.part} in {args.out / 'images'}; {left} of {plan.count} "
            f"are still to be drawn by others ({duration(time.monotonic() - started)})"
        )
        return
    made = finish(args, plan, model, reference)
    spent = duration(time.monotonic() - started)
    print(f"{plan.count} images in {args.out / 'images'}, {', '.join(made)} ({spent})")


def count_images(plan: Plan, units: Sequence[int]) -> int:
    """How many images the units have."""
    return sum(len(plan.places(unit)) for unit in units)


def describe(args: Args, plan: Plan, todo: Sequence[int]) -> str:
    """One line on what is about to happen."""
    how = plan.sampling
    guided = f", guidance {how.guidance:g}" if how.guidance != 1 else ""
    part = f", part {args.part}" if args.part else ""
    there = count_images(plan, part_of(args.part, plan)) - count_images(plan, todo)
    again = f", {there} of them are there already" if there else ""
    return (
        f"{args.checkpoint} ({plan.weights.name}): {plan.count} images{part}, "
        f"{how.sampler} in {how.steps} step{'s' * (how.steps > 1)}{guided}{again}"
    )


def write_receipt(out: Path, models: tuple[Model, Model | None]) -> None:
    """Measure what approximations do, once for a folder, and note it in `samples.json`."""
    with turn(out / "units" / "receipt.claim"):
        plan = read_plan(out)
        if plan is None or plan.receipt is not None or not plan.sampling.approximate:
            return
        pairs = range(plan.seed, plan.seed + PAIRS)
        with threads(plan.threads):
            receipt = measure(
                models[0],
                pairs,
                labels=[plan.label(i) for i in range(PAIRS)],
                settings=plan.sampling,
                reference=models[1],
                follow=follow("receipt"),
            )
        write_plan(out, plan.model_copy(update={"receipt": receipt.model_dump(mode="json")}))
    print(receipt.sentence())


def complete(args: Args, plan: Plan, units: range, models: tuple[Model, Model | None]) -> None:
    """Draw what is missing of some units and check them all; DataError if they do not last."""
    bad: list[int] = []
    for _ in range(2):
        if todo := missing(args.out, plan, units):
            draw_missing(args, plan, todo, models)
        bad = check_units(args.out, plan, follow("checking")(units))
        if not bad:
            return
        print(
            f"diffit: note: images of {len(bad)} units were not as they had been drawn; "
            "they are drawn again",
            file=sys.stderr,
        )
    raise DataError(
        f"images in {args.out} do not stay as they are written (unit {bad[0]}); check the disk"
    )


def draw_missing(
    args: Args, plan: Plan, todo: Sequence[int], models: tuple[Model, Model | None]
) -> None:
    """Draw units, with a bar for the whole folder."""
    with bar("drawing", len(plan.units())) as show:
        tell = Whole(args.out, plan, show).tell
        if args.processes > 1:
            draw_in_processes(plan, args.out, todo, args.processes, tell)
            return
        try:
            draw_here(plan, args.out, todo, models, tell)
        except ValueError as error:
            raise UsageError(f"{error}; try other settings of the sampler") from None


def finish(args: Args, plan: Plan, model: Model, reference: Model | None) -> list[str]:
    """Write everything beside the images; the names of what was written.

    Processes of one machine take turns, and leave large files that another one has just made.
    """
    out = args.out
    with turn(out / "units" / "finish.claim"):
        for name in (CHECKSUMS, "grid.png", "samples.npz", "images/dataset.json"):
            partial_path(out / name).unlink(missing_ok=True)  # of a process that was killed
        digest = write_checksums(out, plan)
        made = [f"{CHECKSUMS} ({digest[:12]})", "grid.png"]
        write_index(out, plan)
        write_grid(out, plan)
        if args.npz:
            made.append("samples.npz")
            if not is_current(out, made[-1]):
                write_npz(out, plan, follow(made[-1]))
        if args.zip:
            made.append("samples.zip")
            if not is_current(out, made[-1]):
                write_zip(out, follow(made[-1]))
        if args.trajectory:
            made.append("trajectory.png")
            write_trajectory(out, plan, model, reference)
    return made


def write_trajectory(out: Path, plan: Plan, model: Model, reference: Model | None) -> None:
    """The path of the first images, and attention along that of the very first."""
    followed = min(plan.count, IMAGES_IN_PATH)
    path = record(
        model,
        range(plan.seed, plan.seed + followed),
        labels=[plan.label(i) for i in range(followed)],
        settings=plan.sampling,
        reference=reference,
        levels=COLUMNS,
    )
    write_here(out / "trajectory.png", picture(path))
