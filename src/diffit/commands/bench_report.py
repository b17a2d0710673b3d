"""The reports of `diffit bench networks`: JSON, Markdown, curves, and one page with all of it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from diffit.data.images import grid
from diffit.report import count, curve, page, pictures, section, table
from diffit.samples import images_of
from diffit.training.folder import write_whole

SHOWN = 40
"""Drawn images of each network in the report."""


@dataclass(frozen=True)
class Entry:
    """What was found of one network.

    Attributes:
        name, title: key of `diffit.networks.NETWORKS`, and what tables call it.
        parameters, macs: its size, and multiplications of a forward pass for one image.
        pace: images a second of a training step.
        images: that it has seen.
        points: (images, held-out loss) on the way.
        by_level: the last held-out loss by noise level, low to high.
        figures: name of each figure of the drawn images to its value.
    """

    name: str
    title: str
    parameters: int
    macs: int
    pace: float
    images: int
    points: tuple[tuple[int, float], ...]
    by_level: tuple[float, ...]
    figures: dict[str, float]

    @property
    def loss(self) -> float:
        """Held-out loss at the end."""
        return self.points[-1][1]

    def loss_at(self, images: float) -> float:
        """Held-out loss after so many images, straight between points on a logarithmic axis."""
        for (a, low), (b, high) in pairwise(self.points):
            if a <= images <= b:
                return low + (high - low) * math.log(images / a) / math.log(b / a)
        return math.nan


def write_reports(out: Path, entries: Sequence[Entry], plan: dict[str, Any]) -> list[Path]:
    """Write results.json, table.md, curves.png and report.html; their paths."""
    results = {**plan, "results": {entry.name: asdict(entry) for entry in entries}}
    write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
    head, rows = columns(entries, plan)
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    write_whole(out / "table.md", f"{about(plan)}\n\n{text}")
    draw_curves(entries, out / "curves.png")
    write_whole(out / "report.html", _page(out, entries, plan))
    return [out / name for name in ("table.md", "curves.png", "report.html", "results.json")]


def about(plan: dict[str, Any]) -> str:
    """What was done, in a sentence."""
    asked = plan["asked"]
    where = plan["accelerator"] or plan["device"]
    clock = "of processor time" if plan["device"] == "cpu" else "on the clock"
    long = (
        f"{asked['images']:,} images each"
        if asked["images"]
        else f"{asked['minutes']:g} minutes {clock} each"
    )
    return (
        f"{asked['data']} ({plan['held']:,} images), {long}, batches of {asked['batch']}, learning "
        f"rate {asked['lr']:g}, seed {asked['seed']}, {asked['precision']}, {where}."
    )


def columns(entries: Sequence[Entry], plan: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, the best loss first."""
    least = min(entry.images for entry in entries)
    figures = list(dict.fromkeys(name for entry in entries for name in entry.figures))
    kept = [name for name in figures if name.startswith(("FD", "FID", "accuracy", "class"))]
    head = ["network", "parameters", "M multiplications", "images / s", "images seen"]
    head += ["held-out loss", f"after {count(least)} images", *kept]
    rows = [
        [
            entry.title,
            f"{entry.parameters:,}",
            f"{entry.macs / 1e6:.1f}",
            f"{entry.pace:,.0f}",
            f"{entry.images:,}",
            f"{entry.loss:.4f}",
            f"{entry.loss_at(least):.4f}",
            *(f"{entry.figures[name]:.3g}" if name in entry.figures else "" for name in kept),
        ]
        for entry in sorted(entries, key=lambda entry: entry.loss)
    ]
    return head, rows


def figures_line(entry: Entry) -> str:
    """One network in a line."""
    return f"{entry.title:14} {entry.parameters:>12,} parameters  held-out loss {entry.loss:.4f}"


def draw_curves(entries: Sequence[Entry], path: Path) -> None:
    """The held-out loss over time, over images, and by noise level, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    over_time, over_images, by_level = figure.subplots(1, 3)
    for colour, entry in enumerate(entries):
        images, losses = (np.array(x) for x in zip(*entry.points, strict=True))
        how = {"color": f"C{colour}", "label": entry.title}
        over_time.plot(images / entry.pace / 60, losses, **how)
        over_images.plot(images, losses, **how)
        # Every level against the mean of all networks there: else the shape of the loss hides all.
        mean = np.mean([other.by_level for other in entries], axis=0)
        by_level.plot(range(1, len(mean) + 1), entry.by_level / mean, marker="o", ms=3, **how)
    over_time.set(xlabel="minutes of training", ylabel="held-out loss", yscale="log")
    over_images.set(xlabel="images seen", yscale="log", xscale="log")
    by_level.set(xlabel="noise level, low to high", ylabel="loss at the end / mean of all")
    over_time.legend(frameon=False, fontsize=8)
    for panel in (over_time, over_images, by_level):
        panel.spines[["top", "right"]].set_visible(False)
    for axis in (over_time.yaxis, over_images.yaxis):
        axis.set_minor_formatter("{x:.2g}")
        axis.set_major_formatter("{x:.2g}")
    partial = path.with_name(f".{path.name}.part.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)


def _page(out: Path, entries: Sequence[Entry], plan: dict[str, Any]) -> str:
    head, rows = columns(entries, plan)
    minutes = {e.title: [(n / e.pace / 60, loss) for n, loss in e.points] for e in entries}
    images = {e.title: list(e.points) for e in entries}
    shown = min(SHOWN, plan["asked"]["samples"])
    drawn = [(_drawn(out / "samples" / e.name, shown), e.title) for e in entries if e.figures]
    pieces = [
        section("Table", table(head, rows), note="The best held-out loss comes first."),
        section("At equal time", curve(minutes, x="minutes of training", y="held-out loss")),
        section("At equal images", curve(images, x="images seen", y="held-out loss")),
    ]
    if drawn:
        pieces.append(
            section("Drawn", pictures(drawn), note="The first seeds of each; nothing was picked.")
        )
    return page("Networks of one size", about(plan), pieces)


def _drawn(folder: Path, shown: int) -> np.ndarray:
    """The first images of a folder as one picture."""
    images = np.stack(list(images_of(folder, range(shown))))
    return grid(images, columns=10, scale=max(1, 32 // images.shape[-1]), gap=2, fill=72)
