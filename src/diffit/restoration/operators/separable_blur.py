"""Blur along rows and columns with one-dimensional kernels (the survey's task 7)."""

from typing import Literal

import torch
from torch import Tensor

from diffit.restoration.kernels import check_kernel
from diffit.restoration.operators.bicubic import mirrored
from diffit.restoration.operators.separable import Separable

Border = Literal["mirror", "zero"]
"""How the image goes on beyond its border: mirrored, or black-and-white's middle, 0."""


def separable_blur(
    shape: tuple[int, ...],
    rows: Tensor,
    columns: Tensor | None = None,
    *,
    border: Border = "mirror",
    floor: float = 1e-10,
) -> Separable:
    """y is the image blurred with kernel ``rows`` along its height, ``columns`` along its width.

    Args:
        shape: (C, H, W).
        rows: (k,) kernel, k odd.
        columns: (l,), l odd; that of the rows by default.
        border: "zero" is the blur of DDRM, which darkens nothing but pulls borders to grey.
        floor: singular values below it count as zero, see `Separable`.
    """
    columns = rows if columns is None else columns
    matrices = (
        _band(check_kernel(kernel[None])[0], side, border)
        for kernel, side in zip((rows, columns), shape[1:], strict=True)
    )
    return Separable(shape, *matrices, floor=floor)


def _band(kernel: Tensor, length: int, border: Border) -> Tensor:
    """(length, length) matrix of a convolution with ``kernel``, which is flipped, as it must be."""
    half = len(kernel) // 2
    positions = torch.arange(length)[:, None] + torch.arange(-half, half + 1)
    weights = kernel.double().flip(0).expand(length, -1)
    if border == "zero":
        weights = torch.where((positions >= 0) & (positions < length), weights, 0.0)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add(1, mirrored(positions, length), weights)
