"""Operators that act on rows and columns apart: pooling, bicubic reduction, separable blur.

A = kron(rows, columns) for each channel; the singular values are the products of those of two
small matrices (the survey's tasks 2, 3 and 7; DDRM, arXiv:2201.11793, appendix D).
"""

import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.operators.operator import SpectralOperator
from diffit.restoration.operators.tensors import Constant


class Separable(SpectralOperator):
    """y = rows x columns' for each channel.

    Args:
        shape: (C, H, W).
        rows: (h, H) matrix that acts along the height.
        columns: (w, W) matrix that acts along the width.
        floor: smaller singular values become zero, in A as in its inverse: below it a blur has
            destroyed what it would take amplified rounding to bring back.
    """

    def __init__(
        self, shape: tuple[int, ...], rows: Tensor, columns: Tensor, *, floor: float = 1e-10
    ) -> None:
        self.shape = tuple(shape)
        self.measured = (shape[0], len(rows), len(columns))
        u, s, vt = torch.linalg.svd(rows.double(), full_matrices=True)
        self._u_rows, self._vt_rows, rows_s = Constant(u), Constant(vt), _padded(s, shape[1])
        u, s, vt = torch.linalg.svd(columns.double(), full_matrices=True)
        self._u_columns, self._vt_columns = Constant(u), Constant(vt)
        products = rows_s[:, None] * _padded(s, shape[2])
        products = torch.where(products >= floor, products, 0.0)
        self.singulars = products.expand(self.shape).flatten()

    def vt(self, x: Tensor) -> Tensor:
        return (self._vt_rows.like(x) @ x @ self._vt_columns.like(x).T).flatten(1)

    def v(self, z: Tensor) -> Tensor:
        z = z.reshape(len(z), *self.shape)
        return self._vt_rows.like(z).T @ z @ self._vt_columns.like(z)

    def ut(self, y: Tensor) -> Tensor:
        z = self._u_rows.like(y).T @ y @ self._u_columns.like(y)
        return _cut(z, self.shape).flatten(1) * (self.singulars > 0).to(y)

    def u(self, z: Tensor) -> Tensor:
        z = (z * (self.singulars > 0).to(z)).reshape(len(z), *self.shape)
        z = _cut(z, self.measured)
        return self._u_rows.like(z) @ z @ self._u_columns.like(z).T


def average_pooling(shape: tuple[int, ...], factor: int) -> Separable:
    """Super-resolution: y is the mean of blocks of ``factor`` x ``factor`` pixels."""
    check_factor(shape, factor)
    rows, columns = (
        torch.eye(side // factor).repeat_interleave(factor, dim=1) / factor for side in shape[1:]
    )
    return Separable(shape, rows, columns)


def check_factor(shape: tuple[int, ...], factor: int) -> None:
    """UsageError unless both sides are multiples of ``factor``."""
    if factor < 1 or shape[1] % factor or shape[2] % factor:
        raise UsageError(
            f"a factor of {factor} does not divide {shape[1]} x {shape[2]} pixels; "
            "crop the image to a multiple of it"
        )


def _padded(singulars: Tensor, length: int) -> Tensor:
    return torch.cat([singulars, singulars.new_zeros(length - len(singulars))])


def _cut(z: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Cut or pad with zeros to the height and width of ``shape``."""
    height, width = shape[-2:]
    z = z[..., :height, :width]
    return torch.nn.functional.pad(z, (0, width - z.shape[-1], 0, height - z.shape[-2]))
