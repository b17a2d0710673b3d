"""What quantising did to a model, as a record, as lines for people, and as a picture."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from diffit import __version__
from diffit.config import Settings
from diffit.data.images import grid

DENSE = "dense"

LEAST = 1e-9
"""An error that float32 cannot tell from none; an axis of logarithms has no place for 0."""


class LevelRow(Settings):
    """Errors at one noise level."""

    sigma: float
    clean: float
    """Relative error of D."""
    raw: float
    """Relative error of the network's output."""


class LayerRow(Settings):
    """What became of one linear layer."""

    name: str
    weights: int
    kind: str
    error: float | None = None
    """Relative error of the network's output that it would cause alone, to first order."""


class Cost(Settings):
    """What one form of the model costs; None: not measured."""

    bytes: int
    """Of all weights."""
    peak: int | None = None
    """Bytes of memory at the peak of loading and one evaluation, in a process of its own."""
    images_per_second: float | None = None
    """Of one evaluation of the denoiser."""


class Report(Settings):
    """The content of `quantization.json`."""

    diffit: str = __version__
    source: str
    weights: str
    linear: dict[str, Any]
    """The settings of the layers, as in the model's configuration."""
    data: str
    images: int
    """Images on which errors were measured, and that one evaluation had."""
    calibration: int
    """Other images, with a view to which weights were rounded."""
    target: float | None
    error: float
    """Relative error of the network's output, root mean square over images and levels."""
    levels: tuple[LevelRow, ...]
    layers: tuple[LayerRow, ...]
    bits: float
    """Bits of each weight of the linear layers in the blocks, scales included."""
    costs: dict[str, Cost] = Field(default_factory=dict)
    """fp32, bf16 and the quantised form, measured in turns."""
    machine: dict[str, Any] = Field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the quantised layers."""
        return str(self.linear["name"])

    @property
    def dense(self) -> list[LayerRow]:
        """The layers that stayed as they were."""
        return [layer for layer in self.layers if layer.kind == DENSE]


def machine(device: str) -> dict[str, Any]:
    """Where a measurement was made."""
    import torch

    return {
        "device": device,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())


def lines_of(report: Report) -> list[str]:
    """The report as text: errors by noise level, then what the model costs."""
    text = ["sigma       error of D   of the network"]
    for row in report.levels:
        text.append(f"{row.sigma:<9.4g}   {row.clean:<10.2%}   {row.raw:.2%}")
    done = len(report.layers) - len(report.dense)
    facts = {
        "error": f"{report.error:.2%} of the network's output"
        + (f", {report.target:.2%} were allowed" if report.target is not None else ""),
        "layers": f"{done} of {len(report.layers)} are {report.kind}"
        + (f"; dense: {_listed(report.dense)}" if report.dense else ""),
        "weights": f"{report.bits:.2f} bits each in linear layers of the blocks",
    }
    width = max(map(len, facts))
    text += ["", *(f"{name:{width}}  {said}" for name, said in facts.items()), ""]
    return text + cost_table(report.costs)


def cost_table(costs: Mapping[str, Cost]) -> list[str]:
    """A line for each form of the model."""
    rows = [["", "weights", "memory at the peak", "images/s and thread"]]
    for name, cost in costs.items():
        speed = "" if cost.images_per_second is None else f"{cost.images_per_second:.3g}"
        rows.append([name, *map(_size, (cost.bytes, cost.peak)), speed])
    filled = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in filled]
    return [
        "  ".join(
            f"{cell:>{w}}" if i else f"{cell:{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in zip(*filled, strict=True)
    ]


def draw(report: Report, path: Path, images: Sequence[tuple[str, np.ndarray]] = ()) -> None:
    """Write a picture: errors by noise level, and by layer; below it rows of drawn images."""
    # matplotlib takes half a second to import: only who draws shall wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8 + 0.8 * len(images)), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.add_gridspec(1 + len(images), 2, height_ratios=[3.8] + [0.8] * len(images))
    _draw_levels(figure.add_subplot(places[0, 0]), report)
    _draw_layers(figure.add_subplot(places[0, 1]), report)
    for row, (name, drawn) in enumerate(images, start=1):
        axes = figure.add_subplot(places[row, :])
        strip = grid(drawn, columns=len(drawn), scale=1)
        axes.imshow(strip.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def _draw_levels(axes: Any, report: Report) -> None:
    sigmas = [row.sigma for row in report.levels]
    raw = [max(row.raw, LEAST) for row in report.levels]
    clean = [max(row.clean, LEAST) for row in report.levels]
    axes.loglog(sigmas, raw, "o-", label="of the network's output")
    axes.loglog(sigmas, clean, "s--", label="of D")
    if report.target is not None:
        axes.axhline(report.target, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="noise level sigma",
        ylabel="relative error",
        title=f"{report.kind}: error by noise level",
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _draw_layers(axes: Any, report: Report) -> None:
    known = [(i, row) for i, row in enumerate(report.layers) if row.error is not None]
    if not known:
        axes.text(0.5, 0.5, "packed as trained:\nno layer was changed", ha="center", va="center")
        axes.set_axis_off()
        return
    for kind, colour in ((report.kind, "tab:blue"), (DENSE, "tab:orange")):
        rows = [(i, row.error) for i, row in known if row.kind == kind]
        if rows:
            axes.bar(*zip(*rows, strict=True), color=colour, label=kind)
    axes.set(xlabel="linear layer, in the network's order", title="of each layer alone")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="y")


def _listed(rows: Sequence[LayerRow], most: int = 4) -> str:
    names = [row.name for row in rows]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _size(count: int | None) -> str:
    if count is None:
        return ""
    for least, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= least:
            return f"{count / least:.3g} {unit}"
    return f"{count} B"
