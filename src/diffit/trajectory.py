"""The denoising path: what the model believes at every noise level, and where it attends.

The picture is that of the paper's Figure 2 (arXiv:2312.02139): above the estimates of the clean
image, below them the attention that the centre token pays to all others, averaged over heads.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from diffit.generation import Labels, SamplingConfig, check, draw, label_tensor
from diffit.model import Model
from diffit.nn.attention import record_attention

T = TypeVar("T")

LAYERS = 6
"""Attention layers that are shown unless told otherwise; evenly spread over the network."""

COLUMNS = 10
"""Noise levels in the picture."""


@dataclass(frozen=True)
class Trajectory:
    """What was recorded while images were drawn.

    Attributes:
        sigmas: the L noise levels at which the denoiser was asked, decreasing.
        estimates: (L, B, C, H, W) uint8, the estimate of the clean images at each.
        images: (B, C, H, W) uint8, what was drawn in the end.
        attention: name of a layer -> (L, B, h, w), attention of the centre token to its grid.
    """

    sigmas: tuple[float, ...]
    estimates: Tensor
    images: Tensor
    attention: dict[str, Tensor]

    def thinned(self, count: int) -> "Trajectory":
        """At most ``count`` of the levels, with both ends."""
        if count >= len(self.sigmas):
            return self
        keep = torch.linspace(0, len(self.sigmas) - 1, count).round().long()
        return Trajectory(
            tuple(self.sigmas[i] for i in keep),
            self.estimates[keep],
            self.images,
            {name: maps[keep] for name, maps in self.attention.items()},
        )


def record(
    model: Model,
    seeds: Sequence[int],
    *,
    labels: Labels = None,
    settings: SamplingConfig | None = None,
    reference: Model | None = None,
    layers: Sequence[str] | None = None,
    levels: int | None = None,
) -> Trajectory:
    """Draw images and keep what happened on the way; arguments as in `generate`.

    Args:
        layers: names of the attention modules to record; by default up to `LAYERS` of them.
        levels: how many noise levels to keep, evenly spread with both ends; None keeps all.
    """
    chosen = settings or model.sampling or SamplingConfig()
    check(model, chosen, reference)
    clean: dict[float, Tensor] = {}
    attention: dict[float, dict[str, Tensor]] = {}
    names = spread(attention_layers(model.network), LAYERS) if layers is None else layers
    with record_attention(model.network, names) as maps:

        def watch(sigma: float, estimate: Tensor) -> None:
            # Some solvers ask twice at a level; the second answer is about where they end up.
            clean[sigma] = estimate.float()
            attention[sigma] = {
                name: centre(maps[name][: len(seeds)], model.shape[1:]).cpu()
                for name in names
                if name in maps  # some layers act in training alone
            }

        label = label_tensor(model, labels, len(seeds))
        images = draw(model, list(seeds), label, chosen, reference=reference, on_step=watch)
    sigmas = spread(sorted(clean, reverse=True), levels or len(clean))
    return Trajectory(
        sigmas=tuple(sigmas),
        # Only what is kept is decoded: an autoencoder may take longer for it than the network.
        estimates=torch.stack([model.codec.decode(clean[sigma]).cpu() for sigma in sigmas]),
        images=images,
        attention={
            name: torch.stack([attention[s][name] for s in sigmas]) for name in attention[sigmas[0]]
        },
    )


def attention_layers(network: nn.Module) -> list[str]:
    """Names of the attention modules of a network, in the order they were built."""
    return [name for name, module in network.named_modules() if hasattr(module, "on_map")]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, evenly spread, with both ends."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def centre(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, heads, N, N) attention over an (H, W) image to the centre token's, (B, h, w)."""
    tokens = maps.shape[-1]
    rows = round((tokens * size[0] / size[1]) ** 0.5)
    columns = tokens // rows
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens make no grid for an image of {size[0]} x {size[1]}")
    middle = rows // 2 * columns + columns // 2
    return maps[:, :, middle].mean(dim=1).reshape(-1, rows, columns)


def picture(trajectory: Trajectory, *, columns: int = COLUMNS, rows: int = 4) -> bytes:
    """The path as a PNG: up to ``rows`` images, then the attention of the first of them."""
    # matplotlib takes half a second to import: only who draws shall wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = trajectory.thinned(columns)
    shown = min(rows, path.images.shape[0])
    height, width = shown + len(path.attention), len(path.sigmas) + 1
    figure = Figure(figsize=(0.95 * width + 1.3, 0.95 * height + 0.6), facecolor="white")
    FigureCanvasAgg(figure)
    left, top = 1.3 / (0.95 * width + 1.3), 1 - 0.5 / (0.95 * height + 0.6)
    axes = figure.subplots(
        height, width, squeeze=False,
        gridspec_kw={"left": left, "right": 0.995, "top": top, "bottom": 0.01,
                     "wspace": 0.06, "hspace": 0.06},
    )  # fmt: skip
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for row in range(shown):
        steps = [*path.estimates[:, row], path.images[row]]
        for axis, image in zip(axes[row], steps, strict=True):
            axis.imshow(_pixels(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for axis in axes[shown:, -1]:
        axis.set_visible(False)
    for row, maps in enumerate(path.attention.values(), start=shown):
        for axis, weights in zip(axes[row], maps[:, 0], strict=False):
            axis.set_facecolor("#eeeeee")  # shows where a window ends: beyond it all weights are 0
            inside = np.ma.masked_equal(weights.numpy(), 0)
            axis.imshow(inside, cmap="magma", vmin=0, interpolation="nearest")
    for axis, sigma in zip(axes[0], (*path.sigmas, 0.0), strict=True):
        axis.set_title(f"σ = {sigma:.2g}" if sigma else "drawn", fontsize=8, color="#444444")
    names = ["estimate"] + [""] * (shown - 1) + _titles(path.attention)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.text(-0.12, 0.5, name, transform=axis.transAxes, fontsize=8, color="#444444",
                  ha="right", va="center")  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _pixels(image: Tensor) -> np.ndarray:
    array = image.numpy()
    return array[0] if len(array) == 1 else array.transpose(1, 2, 0)


def _titles(attention: dict[str, Tensor]) -> list[str]:
    """The layers by number and grid: module names are long, and say less."""
    return [
        f"attention {i}\n{maps.shape[-2]} × {maps.shape[-1]}"
        for i, maps in enumerate(attention.values(), start=1)
    ]
