"""Maps of tokens and of pixels: from one to the other, and to what is shown."""

import torch
import torch.nn.functional as F
from torch import Tensor


def to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, n) token maps, row-major, to (B, rows, columns)."""
    if maps.ndim != 2 or maps.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"maps are {tuple(maps.shape)}; a grid {grid} needs (B, {grid[0] * grid[1]})"
        )
    return maps.reshape(-1, *grid)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, rows, columns) to (B, height, width), bilinear between the centres of the cells."""
    wide = maps if maps.dtype == torch.float64 else maps.float()
    return F.interpolate(wide[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def display(maps: Tensor) -> Tensor:
    """(B, ...) with the values of each image brought to [0, 1]; a constant map becomes 0.

    For pictures alone: what is averaged or certified is never scaled like this.
    """
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1)
    return ((flat - low) / span).view_as(maps)


def cell_sums(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H, W) pixel maps to (B, n): the sum over the pixels of each cell of a grid."""
    rows, columns = grid
    height, width = maps.shape[1:]
    if height % rows or width % columns:
        raise ValueError(f"a map of {height} x {width} pixels has no grid of {rows} x {columns}")
    cells = maps.reshape(-1, rows, height // rows, columns, width // columns)
    return cells.sum((2, 4)).flatten(1)


def positive_share(maps: Tensor) -> Tensor:
    """(B, n) to the positive parts over their sum; where nothing is positive, 1 / n everywhere.

    Rows are probability vectors, as certificates of explanations need them.
    """
    positive = maps.clamp(min=0)
    total = positive.sum(1, keepdim=True)
    share = positive / torch.where(total > 0, total, 1)
    return torch.where(total > 0, share, 1 / maps.shape[1])
