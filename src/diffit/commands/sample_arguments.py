"""The arguments of `diffit sample`, and the plan that follows from them."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from diffit.arguments import read_arguments
from diffit.checkpoint import recommended
from diffit.config import Settings, nearest
from diffit.errors import UsageError
from diffit.generation import check
from diffit.model import Model
from diffit.networks.count import count_macs
from diffit.protocols import PROTOCOLS, Name
from diffit.samples import (
    Plan,
    available_cores,
    class_names,
    image_shape,
    read_plan,
    versions,
    weights_of,
)
from diffit.sampling import SamplingConfig

SMALL = 1_000_000_000
"""Multiplications a forward pass and image up to which one CPU thread draws."""


class Args(Settings):
    """Draw images from a checkpoint.

    CHECKPOINT is a checkpoint, or the folder of a run, whose newest one is taken. How to draw
    starts from what it recommends. Repeat an interrupted command to continue it.
    """

    checkpoint: Annotated[Path, tyro.conf.Fixed, tyro.conf.Suppress]
    out: Path = Path("samples")
    """Folder for the images; processes and machines that share it share the work."""
    protocol: Name | None = None
    """A named way to draw, as published or as recommended; other options replace its parts."""
    count: int = Field(default=16, gt=0, le=10_000_000)
    """How many images to draw; more than before adds to a folder."""
    labels: str = "all"
    """Classes, drawn in turn: numbers, ranges or names such as 3 or 0-4,cat; all; none; or uniform:
    all, one at random for each image."""
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
    part: str = ""
    """Draw part i of n alone, such as 2/8: for machines that do not share a folder."""
    codec: str = ""
    """Folder or hub id of the autoencoder, where the checkpoint names one that has moved or has
    another in mind."""
    rounding: Literal["nearest", "down"] | None = None
    """How 0..255 is made of drawn values; by default as the checkpoint has it."""
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
    default = with_protocol(
        Args(checkpoint=Path(argv[0]), sampling=recommended(argv[0])), _given(argv, "--protocol")
    )
    if _given(argv, "--sampler") is not None:
        default = default.model_copy(update={"sampling": default.sampling.for_any_sampler()})
    return read_arguments(Args, argv[1:], prog=f"{prog} {argv[0]}", default=default)


def with_protocol(args: Args, name: str | None) -> Args:
    """``args`` as the protocol has them; a name that is unknown is left to the parser."""
    if name not in PROTOCOLS:
        return args
    protocol, own = PROTOCOLS[name], args.sampling
    # How to compute is no part of how to draw.
    kept = {"unit": own.unit, "precision": own.precision}
    changes = {
        "sampling": protocol.sampling.model_copy(update=kept),
        "labels": protocol.labels,
        "rounding": protocol.rounding,
        "npz": True,
    }
    return args.model_copy(update=changes)


def _given(argv: Sequence[str], option: str) -> str | None:
    """The value of an option in words that are not parsed yet."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def make_plan(args: Args, model: Model, reference: Model | None) -> Plan:
    """What to draw; UsageError if this model cannot."""
    labels = parse_labels(args.labels, model)
    point_out_side(args, model)
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
        label_order="uniform" if args.labels == "uniform" else "turns",
        classes=class_names(model),
        sampling=args.sampling,
        codec=model.config.codec,
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


def point_out_side(args: Args, model: Model) -> None:
    """A note if the protocol is for images of another size."""
    height, width = image_shape(model)[1:]
    if args.protocol and (height, width) != (PROTOCOLS[args.protocol].side,) * 2:
        print(
            f"diffit: note: protocol {args.protocol} is meant for images of "
            f"{PROTOCOLS[args.protocol].side} pixels; this model draws {height} x {width}",
            file=sys.stderr,
        )


def part_of(text: str, plan: Plan) -> range:
    """The units of part `2/8`; all for no part. UsageError for what is no part."""
    units = plan.units()
    if not text:
        return units
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--part {text!r} is no part; write 2/8 for the second of eight")
    i, n = int(found[1]), int(found[2])
    return units[len(units) * (i - 1) // n : len(units) * i // n]


def threads_for(model: Model) -> int:
    """CPU threads of a new folder: one for a small network, all cores for a large one.

    A small network gains little from a second thread, and beside a busy neighbour every operation
    of two threads waits for the slower one: 20 times slower in all, measured on two cores.
    """
    return 1 if count_macs(model.config.network) <= SMALL else available_cores()


def parse_labels(text: str, model: Model) -> tuple[int | None, ...]:
    """`3`, `0-4,cat`, `all`, `uniform` or `none`; UsageError for a class that is not there."""
    if text in ("all", "uniform") or not text.strip():
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
