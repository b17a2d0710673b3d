"""Large images by overlapping tiles that fade into each other."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

OVERLAP = 4
"""Neighbours share at least one part in so many of a tile."""

MARGIN = 4
"""One part in so many of what they share is left out at the edge of each."""


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, multiple: int = 1
) -> Tensor:
    """``function`` of x, computed tile by tile: its memory does not grow with x.

    All tiles have one size. Where two meet, one fades linearly into the other, and what lies next
    to their edges is left out: a convolution is exact, if it sees no further than a `MARGIN`; of
    what looks at the whole image no seam remains, only the difference between the tiles.

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
    if not x.numel():
        raise ValueError(f"there is nothing to cut into tiles in {tuple(x.shape)}")
    total = weights = torch.empty(0)
    for top, left in product(*starts):
        part = function(x[:, :, top : top + sides[0], left : left + sides[1]])
        factor = part.shape[2] / sides[0]
        if not total.numel():
            height, width = (round(size * factor) for size in x.shape[2:])
            total = part.new_zeros(*part.shape[:2], height, width)
            weights = part.new_zeros(height, width)
        place = tuple(
            slice(round(start * factor), round(start * factor) + size)
            for start, size in zip((top, left), part.shape[2:], strict=True)
        )
        rows, columns = (
            _weights(side, whole).to(part) for side, whole in zip(place, weights.shape, strict=True)
        )
        share = rows[:, None] * columns
        total[:, :, place[0], place[1]] += part * share
        weights[place] += share
    return total / weights


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles begin: as few as overlap enough, evenly spread from end to end."""
    if size <= tile:
        return [0]
    count = -(-(size - tile) // (tile - max(1, tile // OVERLAP))) + 1
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def _weights(side: slice, whole: int) -> Tensor:
    """Weights along one side of a tile: 0 in the margin, rising, 1; and so at the other end.

    At the border of the image there is no neighbour to fade into: there they are 1 to the end.
    """
    size = side.stop - side.start
    overlap = max(1, size // OVERLAP)
    margin = overlap // MARGIN
    ramp = (torch.arange(1, size + 1) - margin).clamp(0, overlap - 2 * margin).double()
    ramp = ramp / (overlap - 2 * margin)
    rising = ramp if side.start > 0 else torch.ones(size)
    falling = ramp.flip(0) if side.stop < whole else torch.ones(size)
    return torch.minimum(rising, falling)
