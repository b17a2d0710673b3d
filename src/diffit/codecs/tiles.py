"""Large images by overlapping tiles that fade into each other."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

OVERLAP = 4
"""Neighbours share at least one part in so many of a tile."""


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, multiple: int = 1
) -> Tensor:
    """``function`` of x, computed tile by tile: its memory does not grow with x.

    All tiles have one size. Where several lie, their answers are averaged, with weights that fall
    linearly towards the edge of a tile: no seam remains, only what a tile cannot know of the rest.

    Args:
        function: (B, C, h, w) to (B, D, h * f, w * f) with a factor f, which may be a fraction.
        x: (B, C, H, W), H and W multiples of ``multiple``.
        tile: side of a tile, a multiple of ``multiple``; a shorter side of x is taken whole.
        multiple: tiles begin and end at multiples of it; 1 / f where that is a whole number.

    Returns:
        (B, D, H * f, W * f).
    """
    sides = [min(tile, size) for size in x.shape[2:]]
    starts = [
        [multiple * i for i in _starts(size // multiple, side // multiple)]
        for size, side in zip(x.shape[2:], sides, strict=True)
    ]
    total = weights = torch.empty(0)
    for top, left in product(*starts):
        part = function(x[:, :, top : top + sides[0], left : left + sides[1]])
        factor = part.shape[2] / sides[0]
        if not total.numel():
            height, width = (round(size * factor) for size in x.shape[2:])
            total, weights = part.new_zeros(*part.shape[:2], height, width), part.new_zeros(1)
            weights = part.new_zeros(height, width)
        share = _ramp(part.shape[2], part)[:, None] * _ramp(part.shape[3], part)
        rows, columns = _place(top * factor, part.shape[2]), _place(left * factor, part.shape[3])
        total[:, :, rows, columns] += part * share
        weights[rows, columns] += share
    return total / weights


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles begin: as few as overlap enough, evenly spread from end to end."""
    if size <= tile:
        return [0]
    count = -(-(size - tile) // (tile - max(1, tile // OVERLAP))) + 1
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def _ramp(size: int, like: Tensor) -> Tensor:
    """Weights along a side: 1, 2, 3, ..., flat beyond the overlap, ..., 3, 2, 1."""
    i = torch.arange(1, size + 1, device=like.device)
    return torch.minimum(i, i.flip(0)).clamp(max=max(1, size // OVERLAP)).to(like)


def _place(start: float, size: int) -> slice:
    return slice(round(start), round(start) + size)
