"""Bicubic reduction and enlargement as matrices (the survey's task 3).

Keys' kernel with a = -1/2, widened with the reduction, and an image that goes on mirrored beyond
its border: the operator of DDRM and DDNM (arXiv:2201.11793; there for even factors alone).
"""

import torch
from torch import Tensor

from diffit.restoration.operators.separable import Separable, check_factor


def bicubic(shape: tuple[int, ...], factor: int) -> Separable:
    """Super-resolution: y is the image reduced by ``factor`` on each side."""
    check_factor(shape, factor)
    return Separable(shape, *(bicubic_rows(side, side // factor) for side in shape[1:]))


def enlarge(y: Tensor, factor: int, *, corner: bool = False) -> Tensor:
    """(..., h, w) to (..., h factor, w factor), the usual naive start of super-resolution.

    With ``corner`` a pixel of y lies where the top left one of its factor x factor does, as
    after `BlurDecimation`; otherwise in their middle.
    """
    rows, columns = (bicubic_rows(n, n * factor, corner=corner).to(y) for n in y.shape[-2:])
    return rows @ y @ columns.T


def bicubic_rows(length: int, size: int, *, corner: bool = False) -> Tensor:
    """(size, length) float64 matrix that resizes a side of ``length`` pixels to ``size``.

    The ends of the two sides meet, or with ``corner`` the centres of their first pixels.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    offset = 0.0 if corner else 0.5
    centres = (torch.arange(size, dtype=torch.float64) + offset) * scale - offset
    reach = int(2 * stretch) + 2
    taps = centres.floor()[:, None] + torch.arange(-reach, reach + 1)
    weights = _keys((taps - centres[:, None]).abs() / stretch)
    weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(size, length, dtype=torch.float64)
    return matrix.scatter_add(1, mirrored(taps.long(), length), weights)


def mirrored(positions: Tensor, length: int) -> Tensor:
    """Pixel numbers of an image that goes on mirrored, its border pixels twice: c b a a b c."""
    positions = positions.remainder(2 * length)
    return torch.where(positions < length, positions, 2 * length - 1 - positions)


def _keys(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
