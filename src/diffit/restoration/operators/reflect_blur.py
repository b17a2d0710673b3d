"""Blur of an image that goes on mirrored beyond its borders, as photographs do (task 8)."""

import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.kernels import check_kernel
from diffit.restoration.operators.circular_blur import filtered, transfer
from diffit.restoration.operators.operator import LinearOperator
from diffit.restoration.operators.tensors import Constant


class ReflectBlur(LinearOperator):
    """y is the convolution with a kernel; no SVD, so that its inverses are iterative.

    Args:
        shape: (C, H, W).
        kernel: (h, w), or (B, h, w) for one kernel an image; odd sides. Half of it is smaller
            than the image. The border pixels are not repeated: c b a b c.
    """

    def __init__(self, shape: tuple[int, ...], kernel: Tensor) -> None:
        self.shape = self.measured = tuple(shape)
        height, width = (side // 2 for side in check_kernel(kernel).shape[-2:])
        if height >= shape[1] or width >= shape[2]:
            raise UsageError(
                f"a blur kernel of {2 * height + 1} x {2 * width + 1} is too large to mirror an "
                f"image of {shape[1]} x {shape[2]} pixels; give a smaller one"
            )
        self._rows, self._columns = _reflected(shape[1], height), _reflected(shape[2], width)
        self._inside = (slice(height, height + shape[1]), slice(width, width + shape[2]))
        self._padded = (shape[0], shape[1] + 2 * height, shape[2] + 2 * width)
        self._otf = Constant(transfer(kernel, self._padded))

    def __call__(self, x: Tensor) -> Tensor:
        padded = x[..., self._rows.to(x.device), :][..., self._columns.to(x.device)]
        return filtered(padded, self._otf.like(x))[..., *self._inside]

    def adjoint(self, y: Tensor) -> Tensor:
        spread = y.new_zeros(len(y), *self._padded)
        spread[..., *self._inside] = y
        spread = filtered(spread, self._otf.like(y).conj())
        columns = y.new_zeros(len(y), *self._padded[:2], self.shape[2])
        columns = columns.index_add(3, self._columns.to(y.device), spread)
        image = y.new_zeros(len(y), *self.shape)
        return image.index_add(2, self._rows.to(y.device), columns)


def _reflected(length: int, half: int) -> Tensor:
    """Numbers of the pixels along a side that goes on by ``half``: c b [a b c d] c b."""
    positions = torch.arange(-half, length + half).abs()
    return torch.where(positions < length, positions, 2 * (length - 1) - positions)
