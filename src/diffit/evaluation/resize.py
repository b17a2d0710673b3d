"""Resizing as matrices: each published protocol is one rule for the rows of a weight matrix.

Output pixel i of a side is the weighted sum of input pixels with row i; height and width are
resized one after the other, Y = A X B^T. Four rules exist here because features depend on them.
"""

import math
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


def bicubic(length: int, size: int) -> Tensor:
    """Bicubic (a = -1/2) whose kernel widens with the reduction, so that nothing aliases.

    Pillow's `resize(BICUBIC)` on float images, as clean-fid resizes; weights sum to 1 at the edges.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    centres = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(length, dtype=torch.float64)[None]
    # Pillow takes the whole pixels whose centres lie in the support, found by rounding its ends.
    first = (centres - 2 * stretch + 0.5).floor().clamp(min=0)
    last = (centres + 2 * stretch + 0.5).floor().clamp(max=length)
    distance = ((pixel + 0.5 - centres) / stretch).abs()
    weights = torch.where((pixel >= first) & (pixel < last), _cubic(distance), 0.0)
    return weights / weights.sum(1, keepdim=True)


def matlab_bicubic(length: int, size: int) -> Tensor:
    """Bicubic (a = -1/2), antialiased, the border mirrored: MATLAB's `imresize`.

    Low-resolution images of super-resolution benchmarks are made by it, and NIQE's half size.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    centres = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale - 0.5
    taps = torch.arange(math.ceil(4 * stretch) + 2, dtype=torch.float64)
    places = (centres - 2 * stretch).floor() + taps
    weights = _cubic(((centres - places) / stretch).abs())
    weights = weights / weights.sum(1, keepdim=True)
    folded = places.long() % (2 * length)
    folded = torch.minimum(folded, 2 * length - 1 - folded)
    return torch.zeros(size, length, dtype=torch.float64).scatter_add(1, folded, weights)


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


def resize_sides(images: Tensor, size: tuple[int, int], rows: Rows) -> Tensor:
    """(B, C, H, W) of a float type to (B, C, *size), in that type."""
    down = rows(images.shape[-2], size[0]).to(images)
    across = rows(images.shape[-1], size[1]).to(images)
    return down @ images @ across.T


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 at distances ``x``, 0 from 2 on."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _linear_rows(centres: Tensor, length: int) -> Tensor:
    """Weights of linear interpolation at ``centres``; positions beyond the edge take the edge."""
    centres = centres.clamp(0, length - 1)
    pixel = torch.arange(length, dtype=torch.float64)
    return (1 - (centres[:, None] - pixel[None]).abs()).clamp(min=0)
