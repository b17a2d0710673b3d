"""Resizing as matrices: each published protocol is one rule for the rows of a weight matrix.

Output pixel i of a side is the weighted sum of input pixels with row i; height and width are
resized one after the other, Y = A X B^T. Three rules exist here because features depend on them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Rows = Callable[[int, int], Tensor]
"""(input length, output length) to the (output, input) float64 weight matrix of one side."""


def half_pixel(length: int, size: int) -> Tensor:
    """Bilinear with half-pixel centres: output i looks at (i + 1/2) length/size - 1/2.

    PyTorch's `interpolate(mode="bilinear", align_corners=False)` without antialiasing, as
    pytorch-fid resizes; up to PyTorch's own rounding of positions in single precision.
    """
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (length / size) - 0.5
    return _linear_rows(centres, length)


def legacy(length: int, size: int) -> Tensor:
    """Bilinear as TensorFlow 1 had it: output i looks at i length/size, so the image shifts.

    This is `resize_bilinear(align_corners=False)` inside the 2015 Inception graph, which ADM's
    evaluation runs; EDM's detector imitates it.
    """
    centres = torch.arange(size, dtype=torch.float64) * (length / size)
    return _linear_rows(centres, length)


def area(length: int, size: int) -> Tensor:
    """Exact area average: output i is the mean over [i, i + 1) length/size, fractions included."""
    step = length / size
    start = torch.arange(size, dtype=torch.float64)[:, None] * step
    pixel = torch.arange(length, dtype=torch.float64)[None]
    overlap = torch.minimum(start + step, pixel + 1) - torch.maximum(start, pixel)
    return overlap.clamp(min=0) / step


def resize(images: Tensor, size: int, rows: Rows) -> Tensor:
    """(B, C, H, W) of any dtype to float32 (B, C, size, size); an image of that size is kept."""
    images = images.float()
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    down = rows(height, size).to(images)
    across = rows(width, size).to(images)
    return down @ images @ across.T


def _linear_rows(centres: Tensor, length: int) -> Tensor:
    """Weights of linear interpolation at ``centres``; positions beyond the edge take the edge."""
    centres = centres.clamp(0, length - 1)
    pixel = torch.arange(length, dtype=torch.float64)
    return (1 - (centres[:, None] - pixel[None]).abs()).clamp(min=0)
