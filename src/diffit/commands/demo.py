"""`diffit demo`: train, sample, evaluate, and a report of it all, in about five minutes."""

import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

import diffit
from diffit.checkpoint import load, newest
from diffit.commands import evaluate, sample
from diffit.config import Settings, parse, to_yaml
from diffit.data import Dataset, open_dataset
from diffit.data.images import grid
from diffit.errors import UsageError
from diffit.evaluation import EvaluationConfig, open_features
from diffit.evaluation import evaluate as measure
from diffit.evaluation.passport import Figure, Passport, read_passport
from diffit.model import Model
from diffit.report import (
    Tile,
    commands,
    count,
    curve,
    details,
    heat,
    matrix,
    page,
    pictures,
    section,
    table,
    tiles,
)  # fmt: skip
from diffit.samples import available_cores, images_of, read_plan, weights_of
from diffit.training.console import duration
from diffit.training.folder import METRICS, is_run, read_run
from diffit.training.journal import read_metrics
from diffit.training.loop import train
from diffit.training.pictures import draw_pictures, real_images, smooth
from diffit.training.presets import read_config
from diffit.training.settings import RunConfig
from diffit.trajectory import record

PRESET, REAL, FEATURES = "diffit-digits", "builtin:digits", "digits-cnn"
SHOWN = 100
"""Images in the pictures of the report."""
LEVELS = 9
"""Noise levels in its pictures of the path."""
SHORT_MINUTES, SHORT_COUNT = 0.4, 200


class Args(Settings):
    """Train a DiffiT on real images before your eyes, sample, evaluate, write a report.

    The images are 8 x 8 handwritten digits that ship with the package; nothing is fetched.
    Interrupted? The same command continues.
    """

    out: Path = Path("demo-run")
    """Folder for everything."""
    minutes: float = Field(default=3.0, gt=0)
    """Time in training."""
    count: int = Field(default=1000, ge=SHOWN)
    """How many digits to draw and measure."""
    short: bool = False
    """Train for seconds only, to see that everything works: quality is not to be expected."""


def run(args: Args) -> None:
    """Train, sample, evaluate, report; each part is left out if it is there already."""
    started = time.monotonic()
    minutes = SHORT_MINUTES if args.short else args.minutes
    digits = SHORT_COUNT if args.short else args.count
    refuse_taken(args.out)
    try:
        print(f"1/4  training {PRESET} on {REAL} for {duration(60 * minutes)}", flush=True)
        model = trained(args.out / "run", minutes)
        print(f"2/4  drawing {digits} digits", flush=True)
        drawn(args.out, model, digits)
        print(f"3/4  comparing them with the real ones ({FEATURES})", flush=True)
        passport = measured(args.out)
        print("4/4  writing the report", flush=True)
        report = args.out / "report.html"
        report.write_text(write_report(args.out, model, passport, short=args.short), "utf-8")
    except KeyboardInterrupt:
        print("diffit: nothing is lost; repeat the command to continue", file=sys.stderr)
        raise
    for line in farewell(args.out, passport, time.monotonic() - started, short=args.short):
        print(line)


def refuse_taken(out: Path) -> None:
    """UsageError if ``out`` is something else than a free name or an earlier demo."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "run").is_dir():
        raise UsageError(f"--out {out} holds other files; name a new folder")


def trained(folder: Path, minutes: float) -> Model:
    """The trained model, from a new run or from the end of an earlier one."""
    resume = is_run(folder)
    if resume:
        config = parse(RunConfig, read_run(folder), source=str(folder))
    else:
        config = read_config(PRESET)
    # One thread: so small a network gains nothing from a second, and loses to a busy neighbour.
    limits = {"minutes": minutes, "threads": 1, "log_every": 2_000}
    config = config.model_copy(update={"train": config.train.model_copy(update=limits)})
    outcome = train(config, folder, resume=resume, on_snapshot=draw_pictures)
    if outcome.reason == "interrupted":
        raise KeyboardInterrupt
    return load(folder)


def drawn(out: Path, model: Model, digits: int) -> None:
    """Draw the digits; those of a run that has been trained further since are drawn anew."""
    plan = read_plan(out / "samples")
    if plan is not None and (plan.weights != weights_of(model) or plan.count > digits):
        shutil.rmtree(out / "samples")
        (out / "evaluation.json").unlink(missing_ok=True)
    sample.run(
        sample.Args(
            checkpoint=out / "run",
            out=out / "samples",
            count=digits,
            device="cpu",
            processes=min(2, available_cores()),
            threads=1,
            trajectory=True,
            sampling=model.sampling,
        )
    )


def measured(out: Path) -> Passport:
    """The passport of the drawn digits."""
    path, plan = out / "evaluation.json", read_plan(out / "samples")
    if path.exists():
        passport = read_passport(path)
        if plan is not None and passport.samples.count == plan.count:
            return passport
        path.unlink()
    evaluate.run(
        evaluate.Args(
            samples=str(out / "samples"), reference=REAL, features=FEATURES, device="cpu", out=path
        )
    )
    return read_passport(path)


def farewell(out: Path, passport: Passport, seconds: float, *, short: bool) -> list[str]:
    """Where everything is."""
    snapshots = sorted((out / "run" / "snapshots").glob("*/beside.png"))
    files = {
        "report": out / "report.html",
        "drawn digits": out / "samples" / "grid.png",
        "real and drawn": snapshots[-1] if snapshots else None,
        "denoising path": out / "samples" / "trajectory.png",
        "learning curve": out / "run" / "loss.png",
        "figures": out / "evaluation.json",
    }
    lines = [f"  {name:15} {path}" for name, path in files.items() if path and path.exists()]
    quality = "the short setting: do not judge the quality" if short else _accuracy(passport)
    return ["", f"done in {duration(seconds)}; {quality}", *lines]


def write_report(out: Path, model: Model, passport: Passport, *, short: bool) -> str:
    """The whole report as HTML."""
    real, metrics = open_dataset(REAL), read_metrics(out / "run" / METRICS)
    seconds, images = metrics[-1]["seconds"], metrics[-1]["images"]
    size = sum(weight.numel() for weight in model.network.parameters())
    lead = (
        f"A class-conditional DiffiT of {count(size)} parameters saw {len(real):,} real digits "
        f"for {duration(seconds)} on one CPU core, and drew these."
    )
    return page(
        "DiffiT, trained before your eyes",
        lead + (" This was the short setting: do not judge the quality." if short else ""),
        [
            tiles(_tiles(passport, seconds, images)),
            _beside(out, real, model),
            _learning(metrics),
            *_path(model),
            _figures(passport, real),
            _commands(out, model),
        ],
    )


def _tiles(passport: Passport, seconds: float, images: int) -> list[Tile]:
    return [
        Tile(f"{100 * passport.value('accuracy'):.1f} %", "class accuracy", f"under {FEATURES}"),
        Tile(f"{passport.value('fd'):.3g}", f"FD ({FEATURES})", "distance to the real digits"),
        Tile(duration(seconds), "in training", f"{images / seconds:,.0f} images a second"),
        Tile(count(images), "images seen", "with repetition"),
    ]


def _beside(out: Path, real: Dataset, model: Model) -> str:
    labels = [i % model.classes for i in range(SHOWN)]
    left = grid(real_images(real, SHOWN, labels), columns=model.classes, scale=4, gap=4, fill=72)
    right = grid(
        torch.tensor([image.tolist() for image in images_of(out / "samples", range(SHOWN))],
                     dtype=torch.uint8),
        columns=model.classes, scale=4, gap=4, fill=72,
    )  # fmt: skip
    return section(
        "Real and drawn",
        pictures([(left, "real digits"), (right, "drawn by the model: seeds 0 to 99")]),
        note="One column for each class; nothing was picked by hand.",
    )


def _learning(metrics: Sequence[dict]) -> str:
    lines = [line for line in metrics if line["loss"] is not None]
    images = [line["images"] for line in lines]
    losses = [line["loss"] for line in lines]
    series = {
        "mean of each stretch": list(zip(images, losses, strict=True)),
        "smoothed": list(zip(images, smooth(losses), strict=True)),
    }
    return section(
        "Learning curve",
        curve(series, x="images seen", y="loss"),
        note="Weighted square error of the denoiser in training (EDM's loss).",
    )


def _path(model: Model) -> list[str]:
    """The sections on the way from noise to digits, one digit of each class."""
    path = record(model, range(model.classes), labels=range(model.classes)).thinned(LEVELS)
    columns = [f"σ {sigma:.2g}" for sigma in path.sigmas]
    digits = [
        (name, [*path.estimates[:, i].numpy(), path.images[i].numpy()])
        for i, name in enumerate(model.config.class_names)
    ]
    attention = [
        (f"{i}: {maps.shape[-2]} × {maps.shape[-1]}", [heat(m) for m in maps[:, 0].numpy()])
        for i, maps in enumerate(path.attention.values(), start=1)
    ]
    return [
        section(
            "From noise to digit",
            matrix([*columns, "drawn"], digits),
            note="What the model believes the clean image to be, at ever lower noise.",
        ),
        section(
            "Attention over time",
            matrix(columns, attention),
            note="TMSA: queries, keys and values depend on the noise level, so that one layer "
            "attends differently at each. Shown is the attention of the centre token to its "
            f"window, averaged over heads, while the digit {model.config.class_names[0]} is "
            "drawn. Light is much.",
        ),
    ]


def _figures(passport: Passport, real: Dataset) -> str:
    unseen = open_dataset(f"{REAL}-test")
    held_out = measure(
        unseen, real, features=open_features(FEATURES), config=EvaluationConfig(draws=0)
    )
    scale = {figure.metric: figure for figure in held_out.figures}
    return section(
        "Figures",
        table(
            ("figure", "drawn digits", "95 % interval", "held-out real digits", "better"),
            [_row(figure, scale.get(figure.metric)) for figure in passport.figures],
        ),
        note=f"Features of {FEATURES}, a small classifier that ships with the package: these "
        f"figures compare with nothing measured by Inception. {len(unseen)} real digits that the "
        "model has not seen, measured the same way, give the scale; FD is higher for fewer images.",
    )


def _row(figure: Figure, scale: Figure | None) -> tuple[str, ...]:
    span = figure.interval
    return (
        figure.name,
        f"{figure.value:.4g}",
        "" if span is None else f"{span.low:.4g} to {span.high:.4g}",
        "" if scale is None else f"{scale.value:.4g}",
        figure.better,
    )


def _commands(out: Path, model: Model) -> str:
    plan = read_plan(out / "samples")
    digits = SHOWN if plan is None else plan.count
    config = parse(RunConfig, read_run(out / "run"), source=str(out / "run"))
    checkpoint = newest(out / "run").folder
    versions = {
        "diffit": diffit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {available_cores()} cores",
    }
    return section(
        "Do it again",
        commands(
            [
                f"diffit train {PRESET} --out run --train.minutes {config.train.minutes:g} "
                "--train.threads 1 --train.log-every 2000 --device cpu",
                f"diffit sample run --out samples --count {digits} --threads 1 --device cpu",
                f"diffit evaluate samples --reference {REAL} --features {FEATURES}",
            ]
        ),
        table(("", "version"), list(versions.items())),
        details("The whole configuration", to_yaml(config)),
        note=f"The same steps one by one; the weights of this report are in {checkpoint}.",
    )


def _accuracy(passport: Passport) -> str:
    share = 100 * passport.value("accuracy")
    return f"{share:.1f} % of the drawn digits are recognised as what they should be"
