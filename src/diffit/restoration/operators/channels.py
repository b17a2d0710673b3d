"""Operators that mix the channels of a pixel: colourisation, spectral bands (tasks 11, 28)."""

import torch
from torch import Tensor

from diffit.restoration.operators.operator import SpectralOperator
from diffit.restoration.operators.tensors import Constant

MEAN = (1 / 3, 1 / 3, 1 / 3)
"""Grey as the mean of red, green and blue, as DDRM and DDNM have it."""
BT601 = (0.299, 0.587, 0.114)
"""Grey as the luma of ITU-R BT.601."""


class Channels(SpectralOperator):
    """y = mixing x for each pixel.

    Args:
        shape: (C, H, W).
        mixing: (M, C), M at most C or more: M bands are measured.
    """

    def __init__(self, shape: tuple[int, ...], mixing: Tensor) -> None:
        if mixing.ndim != 2 or mixing.shape[1] != shape[0]:
            raise ValueError(f"mixing is (bands, {shape[0]}), not {tuple(mixing.shape)}")
        self.shape, self.measured = tuple(shape), (len(mixing), *shape[1:])
        u, s, vt = torch.linalg.svd(mixing.double(), full_matrices=True)
        s = torch.where(s > 1e-10 * s.max(), s, 0.0)
        self._rank = int((s > 0).sum())
        s = torch.cat([s, s.new_zeros(shape[0])])[: shape[0]]
        self.singulars = s[:, None, None].expand(self.shape).flatten()
        self._u, self._vt = Constant(u[:, : self._rank]), Constant(vt)

    def vt(self, x: Tensor) -> Tensor:
        return torch.einsum("dc,bchw->bdhw", self._vt.like(x), x).flatten(1)

    def v(self, z: Tensor) -> Tensor:
        return torch.einsum("dc,bdhw->bchw", self._vt.like(z), z.reshape(len(z), *self.shape))

    def ut(self, y: Tensor) -> Tensor:
        known = torch.einsum("md,bmhw->bdhw", self._u.like(y), y)
        rest = y.new_zeros(len(y), self.shape[0] - self._rank, *self.shape[1:])
        return torch.cat([known, rest], dim=1).flatten(1)

    def u(self, z: Tensor) -> Tensor:
        known = z.reshape(len(z), *self.shape)[:, : self._rank]
        return torch.einsum("md,bdhw->bmhw", self._u.like(z), known)


def colorization(shape: tuple[int, ...], weights: tuple[float, ...] = MEAN) -> Channels:
    """y is the grey image, (1, H, W): the weighted sum of the channels."""
    return Channels(shape, torch.tensor([weights], dtype=torch.float64))
