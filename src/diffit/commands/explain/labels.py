"""`diffit explain predict` and `certify`: smoothed labels, and how far they are certain."""

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, PositiveInt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffit.commands.explain.arguments import (
    PIXELS,
    Noise,
    Opened,
    Parts,
    check_images,
    check_out,
    open_parts,
    running,
    smooth,
)
from diffit.commands.explain.examples import (
    Example,
    Images,
    LabelledSet,
    read_examples,
    to_tensor,
)
from diffit.commands.explain.pictures import Panel, draw_panels
from diffit.commands.explain.progress import Bar
from diffit.config import Settings
from diffit.data.images import write_atomic
from diffit.errors import UsageError
from diffit.explain.certify import ABSTAIN
from diffit.explain.measures.curve import Row, RowWriter, certified_accuracy, certified_curve
from diffit.explain.results import as_json
from diffit.explain.smoothed import certify, predict
from diffit.explain.smoothing import Smoothed
from diffit.explain.units import from_pm1
from diffit.training.console import duration
from diffit.training.folder import locked, write_whole

TABLE, PLAN, CURVE = "certificates.tsv", "certificates.json", "certified.png"
FORMAT = "diffit-certificates-1"
Match = Literal["name", "order"]


class Predict(Settings):
    """Smoothed labels of images: the class most likely under noise, or an abstention."""

    images: Images
    """Image files, or images of a set such as builtin:digits-test:3."""
    parts: tyro.conf.OmitArgPrefixes[Parts]
    noise: tyro.conf.OmitArgPrefixes[Noise]
    samples: PositiveInt = Field(default=1000, le=10_000_000)
    """Noisy copies whose votes are counted."""
    alpha: float = Field(default=0.001, gt=0, lt=1)
    """Probability of a label that is not the smoothed classifier's."""
    out: Path | None = None
    """JSON file for the results."""


class Certify(Settings):
    """Certify the labels of a set: within which l2 radius nothing changes them.

    Interrupted? The same command continues.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder, zip or npz of images with classes, or a set such as builtin:digits-test."""
    parts: tyro.conf.OmitArgPrefixes[Parts]
    noise: tyro.conf.OmitArgPrefixes[Noise]
    out: Path
    """Folder for the table, its curve, and what they depend on."""
    n0: PositiveInt = Field(default=100, le=10_000_000)
    """Noisy copies that choose the class."""
    n: PositiveInt = Field(default=1000, le=10_000_000)
    """Fresh copies that are counted for it; the largest possible radius grows with their number."""
    alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """Probability that a certificate is wrong."""
    every: PositiveInt = 1
    """Take every so-many-th image of the set."""
    limit: PositiveInt | None = None
    """Take so many images at most."""
    match: Match = "name"
    """How classes of the set are found among the classifier's: by name, or by their order."""


def run_predict(args: Predict) -> None:
    """Count votes for each image, print, and write what was found."""
    check_out(args.out)
    opened = open_parts(args.parts)
    examples = read_examples(
        args.images,
        channels=opened.channels,
        size=args.parts.size,
        classes=opened.classifier.class_names,
    )
    images = to_tensor(examples)
    check_images(opened, examples[0].shape)
    smoothed = smooth(opened, args.parts, args.noise.level)
    found = []
    with (
        Bar("predicting", args.samples * len(examples)) as bar,
        running(args.parts, args.noise.level) as run,
    ):
        for example, image in zip(examples, images.to(opened.device), strict=True):
            found.append(
                predict(
                    smoothed, image, n=args.samples, alpha=args.alpha, number=example.number,
                    run=run, tell=bar.tell,
                )
            )  # fmt: skip
            bar.reach(args.samples * len(found))
    names = opened.classifier.class_names
    _show(examples, found, names)
    if args.out is not None:
        results = {
            "asked": {**args.noise.stated(), "samples": args.samples, "alpha": args.alpha},
            **opened.identity(),
            "class_names": list(names),
            "images": [
                {"name": example.name, **as_json(one)}
                for example, one in zip(examples, found, strict=True)
            ],
        }
        write_atomic(args.out, (json.dumps(results, indent=1) + "\n").encode())
        print(f"{args.out}: counts and p-values")


def run_certify(args: Certify) -> None:
    """Certify what is missing in the table, then sum up."""
    opened = open_parts(args.parts)
    examples = LabelledSet(
        args.data,
        channels=opened.channels,
        size=args.parts.size,
        classes=opened.classifier.class_names,
        by=args.match,
        every=args.every,
        limit=args.limit,
    )
    check_images(opened, examples.shape)
    smoothed = smooth(opened, args.parts, args.noise.level)
    asked = {
        "data": args.data, **args.noise.stated(), "n0": args.n0, "n": args.n, "alpha": args.alpha,
        "every": args.every, "steps": args.parts.steps, "seed": args.parts.seed,
        "size": args.parts.size, "precision": args.parts.precision,
        "sampler": args.parts.sampler, "match": args.match,
    }  # fmt: skip
    started = time.monotonic()
    with locked(args.out):
        begin(args.out, {"format": FORMAT, "asked": asked, **opened.identity()})
        with running(args.parts, args.noise.level) as run:
            rows = certify_set(
                smoothed, opened, examples, args.out / TABLE, args.noise, n0=args.n0, n=args.n,
                alpha=args.alpha, run=run,
            )  # fmt: skip
        summary = summarise(rows, args.noise)
        plan = {"format": FORMAT, "asked": asked, **opened.identity(), "summary": summary}
        write_whole(args.out / PLAN, json.dumps(plan, indent=1) + "\n")
        _draw(rows, args.out / CURVE, args.noise)
    for line in _farewell(args.out, summary, args.noise, time.monotonic() - started):
        print(line)


def begin(out: Path, plan: dict[str, Any], name: str = PLAN) -> None:
    """Write what a table depends on, or find that ``out`` continues the same; else UsageError."""
    path = out / name
    if not path.exists():
        strangers = sorted({p.name for p in out.iterdir()} - {"lock"})
        if strangers:
            raise UsageError(f"--out {out} holds other files ({strangers[0]}); name a new folder")
        write_whole(path, json.dumps(plan, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text("utf-8"))
        asked = dict(before["asked"])
        hashes = {name: _hash(before[name]) for name in ("classifier", "denoiser")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is damaged; name a new folder with --out") from None
    wanted = json.loads(json.dumps(plan))
    for name, value in wanted["asked"].items():
        if asked.get(name) != value:
            raise UsageError(
                f"--out {out} was begun with {name} {asked.get(name)}, now it is {value}; "
                "repeat the first command or name a new folder"
            )
    for name, known in hashes.items():
        if known != _hash(wanted[name]):
            raise UsageError(f"--out {out} was begun with another {name}; name a new folder")


def certify_set(
    smoothed: Smoothed,
    opened: Opened,
    examples: LabelledSet,
    table: Path,
    noise: Noise,
    *,
    n0: int,
    n: int,
    alpha: float,
    run: Any = None,
) -> list[Row]:
    """Certify the images that a table lacks, each row on the disk before the next is begun.

    Radii in the table are in the units of ``noise``.

    Returns:
        The rows of these images, in their order.
    """
    with RowWriter(table) as writer:
        known = {row.idx for row in writer.done}
        todo = [place for place, number in enumerate(examples.numbers) if number not in known]
        copies = n0 + n
        with Bar("certifying", copies * len(examples), copies * (len(examples) - len(todo))) as bar:
            for done, place in enumerate(todo, start=len(examples) - len(todo) + 1):
                writer.write(_row(smoothed, opened, examples[place], noise, n0, n, alpha, run, bar))
                bar.reach(copies * done)
        found = {row.idx: row for row in writer.done}
    return [found[number] for number in examples.numbers]


def _row(
    smoothed: Smoothed,
    opened: Opened,
    example: Example,
    noise: Noise,
    n0: int,
    n: int,
    alpha: float,
    run: Any,
    bar: Bar,
) -> Row:
    started = time.monotonic()
    image = to_tensor([example])[0].to(opened.device)
    found = certify(
        smoothed, image, n0=n0, n=n, alpha=alpha, number=example.number, run=run, tell=bar.tell
    )
    return Row(
        idx=example.number,
        label=-2 if example.label is None else example.label,
        predict=ABSTAIN if found.label is None else found.label,
        radius=from_pm1(found.radius_l2, noise.units),
        correct=found.label is not None and found.label == example.label,
        seconds=time.monotonic() - started,
    )


def summarise(rows: list[Row], noise: Noise) -> dict[str, Any]:
    """What a table says in all; radii in the units of ``noise``."""
    radii = round_radii(max(row.radius for row in rows))
    return {
        "images": len(rows),
        "abstained": sum(row.predict == ABSTAIN for row in rows),
        "correct": sum(row.correct for row in rows),
        "radius_units": noise.units,
        "certified_accuracy": dict(
            zip(map(str, radii), certified_accuracy(rows, radii), strict=True)
        ),
        "seconds_per_image": sum(row.seconds for row in rows) / len(rows),
    }


def round_radii(largest: float) -> list[float]:
    """0 and round radii up to the largest, some five of them."""
    step = next(
        (s for s in (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0) if largest / s < 6), 10.0
    )
    return [round(step * i, 3) for i in range(int(largest / step) + 1)]


def _draw(rows: list[Row], path: Path, noise: Noise) -> None:
    radii, accuracy = certified_curve(rows)
    name = f"sigma {noise.sigma:g}"
    lines = {name: list(zip(radii, accuracy, strict=True))}
    x = f"l2 radius, {PIXELS[noise.units]}"
    draw_panels(path, [Panel("certified accuracy", x, "accuracy", lines, steps=True)])


def _farewell(out: Path, summary: dict[str, Any], noise: Noise, seconds: float) -> list[str]:
    shares = summary["certified_accuracy"].items()
    return [
        f"{summary['images']} images, {summary['correct']} certified correct, "
        f"{summary['abstained']} abstentions ({duration(seconds)})",
        f"certified accuracy by l2 radius, {PIXELS[noise.units]}: "
        + "  ".join(f"{float(radius):g}: {share:.3f}" for radius, share in shares),
        f"  table   {out / TABLE}",
        f"  curve   {out / CURVE}",
        f"  record  {out / PLAN}",
    ]


def _show(examples: list[Example], found: list[Any], names: tuple[str, ...]) -> None:
    table = Table()
    for head in ("image", "label", "p-value", "votes"):
        table.add_column(head, justify="left" if head in ("image", "label") else "right")
    for example, one in zip(examples, found, strict=True):
        label = "abstains" if one.label is None else names[one.label]
        table.add_row(escape(example.name), escape(label), f"{one.p_value:.2g}", _votes(one, names))
    Console().print(table)


def _votes(one: Any, names: tuple[str, ...]) -> str:
    """The classes with the most votes, as text."""
    order = sorted(range(len(names)), key=lambda k: (-one.counts[k], k))
    most = [f"{names[k]}: {one.counts[k]}" for k in order[:3] if one.counts[k]]
    return escape(", ".join(most) + f" of {sum(one.counts)}")


def _hash(identity: Any) -> Any:
    return identity and identity.get("hash")
