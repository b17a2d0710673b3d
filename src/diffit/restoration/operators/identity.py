"""Denoising: y = x + noise (the survey's task 1)."""

import torch
from torch import Tensor

from diffit.restoration.operators.operator import SpectralOperator
from diffit.restoration.operators.tensors import size


class Identity(SpectralOperator):
    """y = x.

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = self.measured = tuple(shape)
        self.singulars = torch.ones(size(shape), dtype=torch.float64)

    def vt(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def v(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), *self.shape)

    def ut(self, y: Tensor) -> Tensor:
        return y.flatten(1)

    def u(self, z: Tensor) -> Tensor:
        return self.v(z)
