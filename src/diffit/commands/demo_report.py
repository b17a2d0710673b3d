"""The report of `diffit demo`: what was learned, drawn and measured, on one page."""

import platform
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffit
from diffit.checkpoint import newest
from diffit.config import parse, to_yaml
from diffit.data import Dataset, open_dataset
from diffit.data.images import grid
from diffit.evaluation import EvaluationConfig, open_features
from diffit.evaluation import evaluate as measure
from diffit.evaluation.passport import Figure, Passport
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
)
from diffit.samples import available_cores, images_of, read_plan
from diffit.training.console import duration
from diffit.training.folder import METRICS, read_run
from diffit.training.journal import read_metrics
from diffit.training.pictures import real_images
from diffit.training.settings import RunConfig
from diffit.trajectory import record

PRESET, REAL, FEATURES = "diffit-digits", "builtin:digits", "digits-cnn"
SHOWN = 100
"""Images in the pictures."""
LEVELS = 9
"""Noise levels in the pictures of the path."""


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
    drawn = np.stack(list(images_of(out / "samples", range(SHOWN))))
    right = grid(drawn, columns=model.classes, scale=4, gap=4, fill=72)
    return section(
        "Real and drawn",
        pictures([(left, "real digits"), (right, "drawn by the model: seeds 0 to 99")]),
        note="One column for each class; nothing was picked by hand.",
    )


def _learning(metrics: Sequence[dict[str, Any]]) -> str:
    lines = [line for line in metrics if line["loss"] is not None]
    series = {
        "all noise levels": [(line["images"], line["loss"]) for line in lines],
        "the lowest eighth": [(line["images"], line["loss_by_level"][0] or nan) for line in lines],
        "the highest eighth": [
            (line["images"], line["loss_by_level"][-1] or nan) for line in lines
        ],
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
