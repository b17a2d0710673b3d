"""Compressed sensing with some Walsh-Hadamard coefficients (the survey's task 12).

The operator of DDRM and DDNM (arXiv:2201.11793, appendix D), for images of any size.
"""

import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.operators.operator import SpectralOperator


class WalshHadamard(SpectralOperator):
    """y is one in ``ratio`` of the Walsh-Hadamard coefficients of each channel.

    The transform exists for powers of two. Other numbers of pixels are cut into such runs, the
    longest first, and each run is transformed by itself; where H W is a power of two there is
    one run, as published.

    Args:
        shape: (C, H, W).
        ratio: H W / ratio coefficients are measured, rounded down.
        order: (H W,) permutation of the coefficients; its first ones are measured.
    """

    def __init__(self, shape: tuple[int, ...], ratio: int, order: Tensor) -> None:
        pixels = shape[1] * shape[2]
        if order.shape != (pixels,) or not torch.equal(order.sort().values, torch.arange(pixels)):
            raise ValueError(f"order is a permutation of the {pixels} coefficients")
        if not 1 <= ratio <= pixels:
            raise UsageError(f"a ratio of 1 / {ratio} measures nothing of {pixels} pixels")
        self.shape = tuple(shape)
        self._runs = [1 << bit for bit in reversed(range(pixels.bit_length())) if pixels >> bit & 1]
        self._known = order[: pixels // ratio].clone()
        self.measured = (shape[0], len(self._known))
        known = torch.zeros(pixels, dtype=torch.float64)
        known[self._known] = 1
        self.singulars = known.expand(shape[0], -1).flatten()

    def vt(self, x: Tensor) -> Tensor:
        return self._transform(x.flatten(2)).flatten(1)

    def v(self, z: Tensor) -> Tensor:
        # Sylvester's matrix is symmetric and orthogonal: its own inverse.
        return self._transform(z.reshape(len(z), self.shape[0], -1)).reshape(len(z), *self.shape)

    def ut(self, y: Tensor) -> Tensor:
        z = y.new_zeros(len(y), self.shape[0], self.shape[1] * self.shape[2])
        return z.index_copy(2, self._known.to(y.device), y).flatten(1)

    def u(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), self.shape[0], -1)[..., self._known.to(z.device)]

    def _transform(self, x: Tensor) -> Tensor:
        runs = torch.split(x, self._runs, dim=-1)
        return torch.cat([walsh_hadamard(run) for run in runs], dim=-1)


def walsh_hadamard(x: Tensor) -> Tensor:
    """The orthonormal transform of (..., n) in Sylvester's order; n a power of two."""
    shape, n, step = x.shape, x.shape[-1], 1
    x = x / n**0.5
    while step < n:
        a, b = x.reshape(*shape[:-1], -1, 2, step).unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).reshape(shape)
        step *= 2
    return x
