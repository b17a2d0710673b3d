"""Patches, position tables, and the embeddings of noise level and label."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffit.distributed import double
from diffit.nn.linear import Linear

TimeFeatures = Literal["dit", "diffusers", "positional", "fourier"]
"""How a noise level becomes features: see `dit_features`, of which that in diffusers is a variant,
`positional_features` and `Fourier`."""

FOURIER_SCALE = 16.0  # standard deviation of the frequencies in the score-SDE and EDM code bases


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, N, C p p): row-major patches, the axes (channel, row, column) inside."""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(B, N, p p C) to (B, C, H, W): the axes (row, column, channel) inside, as DiT has them.

    This order differs from that of `patchify`, which is a convolution kernel's; both are those of
    the published checkpoints.
    """
    return rearrange(
        tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch, q=patch
    )


def sincos_grid(grid: tuple[int, int], width: int) -> Tensor:
    """The fixed (N, C) position table of MAE and DiT for a (rows, columns) grid, row-major.

    A quarter of the channels each holds sin and cos of the column, then sin and cos of the row, at
    the frequencies 10000^(-k/K), K = C/4. Angles are float64, the result is float32.
    """
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    return sincos_at(rows, columns, width)


def sincos_at(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """`sincos_grid` for grid lines at any float64 coordinates."""
    if width % 4:
        raise ValueError(f"width ({width}) must be a multiple of 4 for a 2-D position table")
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    across = torch.outer(columns, omega).expand(len(rows), -1, -1)
    down = torch.outer(rows, omega)[:, None].expand(-1, len(columns), -1)
    table = torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=-1)
    return table.flatten(0, 1).float()


class PositionTable(nn.Module):
    """A learned vector for each cell of a grid, row-major.

    Args:
        grid: (rows, columns).
        width: channels C of a token.
    """

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty(grid[0] * grid[1], width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) tokens of the grid to the same, with the table added."""
        return tokens + self.table


def dit_features(time: Tensor, features: int, *, shift: int = 0) -> Tensor:
    """(B,) to (B, M), [cos, sin] at 10000^(-k/(M/2 - shift)); an odd M gets a column of zeros.

    DiT's code has shift 0, its port in diffusers 1. The exponents are computed in their order: at
    step 999 another rounding of the frequencies would show in the fifth digit. For the same reason
    the exponential is the nearest number on every machine, as in the recorded runs.
    """
    half = features // 2
    k = torch.arange(half, dtype=torch.float32, device=time.device)
    exponent = -math.log(10000) * k / max(half - shift, 1)
    angle = time.float()[:, None] * exponent.to(double(time.device)).exp().float()
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, features % 2))


def positional_features(time: Tensor, features: int) -> Tensor:
    """(B,) to (B, M), [sin, cos] at 10000^(-k/(M/2 - 1)): EDM's, whose last frequency is 1e-4."""
    half = features // 2
    k = torch.arange(half, dtype=torch.float32, device=time.device)
    angle = time.float()[:, None] * 10000 ** (-k / max(half - 1, 1))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Fourier(nn.Module):
    """(B,) to (B, M), [cos, sin] of 2 pi f t at random fixed frequencies f (arXiv:2006.10739)."""

    frequencies: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(features // 2) * FOURIER_SCALE)

    def forward(self, time: Tensor) -> Tensor:
        angle = time.float()[:, None] * (2 * math.pi * self.frequencies.float())
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Noise level to time token: features, Linear, SiLU, Linear, and in image space one more SiLU.

    Args:
        width: channels T of the time token.
        features: channels M of the fixed features; even, except for the kind ``"dit"``.
        kind: ``"dit"``, ``"diffusers"``, ``"positional"`` or ``"fourier"``.
        hidden: units between the two layers; None for ``width``.
        final_silu: end with a SiLU, as EDM's networks do.
    """

    def __init__(
        self,
        width: int,
        *,
        features: int,
        kind: TimeFeatures,
        hidden: int | None = None,
        final_silu: bool = False,
    ) -> None:
        super().__init__()
        if features % 2 and kind != "dit":
            raise ValueError(f"features ({features}) must be even for a {kind} time embedding")
        self.features = features
        self.kind = kind
        self.fourier = Fourier(features) if kind == "fourier" else None
        self.hidden = Linear(features, hidden or width)
        self.out = Linear(hidden or width, width)
        self.final_silu = final_silu

    def forward(self, time: Tensor, extra: Tensor | None = None) -> Tensor:
        """(B,) float32, and (B, M) to add to the features or None, to (B, T)."""
        # In bfloat16 the step indices 0..999 would collapse: the features stay float32.
        embedded = self._features(time).to(self.hidden.weight.dtype)
        embedded = embedded if extra is None else embedded + extra
        token: Tensor = self.out(F.silu(self.hidden(embedded)))
        return F.silu(token) if self.final_silu else token

    def _features(self, time: Tensor) -> Tensor:
        if self.fourier is not None:
            features: Tensor = self.fourier(time)
            return features
        if self.kind == "positional":
            return positional_features(time, self.features)
        return dit_features(time, self.features, shift=1 if self.kind == "diffusers" else 0)


class LabelEmbedding(nn.Module):
    """A learned vector for each class, and one, the last, for "no class".

    Args:
        classes: number of classes K.
        width: channels of the vector.
        null: keep the row for "no class"; only converted models have none.
    """

    def __init__(self, classes: int, width: int, *, null: bool = True) -> None:
        super().__init__()
        self.classes = classes
        self.null = null
        self.table = nn.Embedding(classes + null, width)

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        """(B,) int64 of 0 .. K-1, or K for no class, or None for no class at all, to (B, T)."""
        if label is None:
            if not self.null:
                raise ValueError("this network knows no 'no class'; give a label to every image")
            label = torch.full((batch,), self.classes, device=self.table.weight.device)
        vector: Tensor = self.table(label)
        return vector
