"""Classical super-resolution: circular blur, then one pixel in r x r (the survey's task 4).

A A' is a circular convolution of the small image, so that inverses have closed forms (the
formula is derived in arXiv:1602.03571, and used by DiffPIR, arXiv:2305.08995).
"""

import torch
from torch import Tensor

from diffit.restoration.operators.circular_blur import filtered, transfer
from diffit.restoration.operators.operator import LinearOperator
from diffit.restoration.operators.separable import check_factor
from diffit.restoration.operators.tensors import Constant, over


class BlurDecimation(LinearOperator):
    """y keeps the top left pixel of each ``factor`` x ``factor`` of the blurred image.

    Args:
        shape: (C, H, W).
        kernel: (h, w) or (B, h, w), as in `CircularBlur`.
        factor: divides H and W.
    """

    def __init__(self, shape: tuple[int, ...], kernel: Tensor, factor: int) -> None:
        check_factor(shape, factor)
        self.shape, self.factor = tuple(shape), factor
        self.measured = (shape[0], shape[1] // factor, shape[2] // factor)
        otf = transfer(kernel, shape)
        self._otf = Constant(otf)
        # Decimation folds factor^2 frequencies of the image into one of the small image.
        height, width = self.measured[1:]
        bands = otf.abs().square().reshape(-1, 1, factor, height, factor, width)
        self._gram = Constant(bands.mean(dim=(2, 4)))

    def __call__(self, x: Tensor) -> Tensor:
        return filtered(x, self._otf.like(x))[..., :: self.factor, :: self.factor]

    def adjoint(self, y: Tensor) -> Tensor:
        spread = y.new_zeros(len(y), *self.shape)
        spread[..., :: self.factor, :: self.factor] = y
        return filtered(spread, self._otf.like(y).conj())

    def pinv(self, y: Tensor) -> Tensor:
        gram = self._gram.like(y)
        kept = gram > 1e-20 if y.dtype == torch.float64 else gram > 1e-10
        return self.adjoint(filtered(y, torch.where(kept, 1 / gram, 0.0)))

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        # (A'A + rho)^-1 applied through (A A' + rho)^-1, which is a filter of the small image.
        weight = 1 / (self._gram.like(z) + over(rho, z))
        return z + self.adjoint(filtered(y - self(z), weight))
