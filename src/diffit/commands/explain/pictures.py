"""Pictures of `diffit explain`: relevance over images, and curves of robustness."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Points = Sequence[tuple[float, float]]
BLEND = 0.6
"""How much of a pixel's colour is its relevance, the rest its image."""


class Panel(NamedTuple):
    """One chart: lines over x.

    Attributes:
        title, x, y: what is written above and beside it.
        lines: name of each to its points, by rising x.
        steps: the lines fall in steps, as shares of images do, and are not straight between points.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Points]
    steps: bool = False


class Row(NamedTuple):
    """One row of maps: its name, and (image, relevance) pairs; a missing relevance shows the image.

    Images are (C, H, W) uint8, relevances (H, W) within 0 .. 1.
    """

    name: str
    cells: Sequence[tuple[np.ndarray, np.ndarray | None]]


def draw_panels(path: Path, panels: Sequence[Panel]) -> None:
    """Charts side by side as a PNG file, up to three in a row."""
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.5 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    save(figure, path)


def draw_maps(path: Path, head: Sequence[str], rows: Sequence[Row]) -> None:
    """Relevance over images, from dark (none) to light (much), as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * len(head) + 1, 1.55 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), len(head), squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        line[0].set_ylabel(row.name, rotation=0, ha="right", va="center", fontsize=9)
        for place, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if place < len(row.cells):
                # Pixels stay squares: these images may be as small as 8 x 8.
                axis.imshow(overlay(*row.cells[place]), interpolation="nearest")
    for axis, title in zip(axes[0], head, strict=True):
        axis.set_title(title, fontsize=9)
    save(figure, path)


def overlay(image: np.ndarray, relevance: np.ndarray | None) -> np.ndarray:
    """A (C, H, W) uint8 image under its (H, W) relevance in 0 .. 1, as (H, W, 3) uint8."""
    from matplotlib import colormaps

    grey = image.mean(axis=0, keepdims=True).repeat(3, axis=0)
    if relevance is None:
        shown = image.repeat(3, axis=0) if len(image) == 1 else image
        return shown.transpose(1, 2, 0)
    colours = 255 * colormaps["inferno"](np.clip(relevance, 0, 1))[..., :3]
    mixed: np.ndarray = np.round((1 - BLEND) * grey.transpose(1, 2, 0) + BLEND * colours)
    return mixed.astype(np.uint8)


def save(figure: Any, path: Path) -> None:
    """Write a figure; a reader sees the whole picture or none."""
    partial = path.with_name(f".{path.name}.part.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)


def _draw(axis: Any, panel: Panel) -> None:
    for place, (name, points) in enumerate(panel.lines.items()):
        x, y = zip(*points, strict=True)
        # A second round of the colours is dashed, so that a dozen lines can be told apart.
        how = {"color": f"C{place % 6}", "ls": "--" if place % 12 >= 6 else "-", "label": name}
        if panel.steps:
            # Values of x are ends: the share holds up to and including its radius.
            axis.step(x, y, where="pre", **how)
        else:
            axis.plot(x, y, marker="o", ms=3, **how)
    axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    axis.set_ylim(-0.02, 1.02)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    if len(panel.lines) > 1 or "" not in panel.lines:
        axis.legend(frameon=False, fontsize=7)
