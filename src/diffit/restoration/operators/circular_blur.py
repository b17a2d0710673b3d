"""Blur of an image that goes on around its borders: diagonal in frequency (tasks 7 and 8)."""

import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.kernels import check_kernel
from diffit.restoration.operators.operator import SpectralOperator
from diffit.restoration.operators.tensors import Constant


class CircularBlur(SpectralOperator):
    """y is the circular convolution of each channel with a kernel.

    A'A is real, symmetric and diagonal in frequency, and frequencies k and -k share a value: the
    Hartley transform, real and its own inverse, therefore holds the right singular directions.

    Args:
        shape: (C, H, W).
        kernel: (h, w), or (B, h, w) for one kernel an image; odd sides, at most the image's.
        floor: frequencies that are damped to less than this factor are taken as lost.
    """

    def __init__(self, shape: tuple[int, ...], kernel: Tensor, *, floor: float = 1e-10) -> None:
        self.shape = self.measured = tuple(shape)
        otf = transfer(kernel, shape)
        gain = otf.abs()
        otf = torch.where(gain >= floor, otf, 0.0)
        phase = torch.where(gain >= floor, otf / gain.clamp(min=1e-300), 0.0)
        self.singulars = otf.abs().expand(*otf.shape[:-3], *shape).flatten(-3)
        self._otf, self._phase = Constant(otf), Constant(phase)

    def __call__(self, x: Tensor) -> Tensor:
        return filtered(x, self._otf.like(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return filtered(y, self._otf.like(y).conj())

    def vt(self, x: Tensor) -> Tensor:
        return hartley(x).flatten(1)

    def v(self, z: Tensor) -> Tensor:
        return hartley(z.reshape(len(z), *self.shape))

    def ut(self, y: Tensor) -> Tensor:
        known = (self.singulars > 0).to(y)
        return self.vt(filtered(y, self._phase.like(y).conj())) * known

    def u(self, z: Tensor) -> Tensor:
        return filtered(self.v(z), self._phase.like(z))


def transfer(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(1, H, W) or (B, 1, H, W) complex128: the kernel in frequency, its centre at pixel (0, 0)."""
    kernel = check_kernel(kernel)
    (height, width), (h, w) = shape[-2:], kernel.shape[-2:]
    if h > height or w > width:
        raise UsageError(
            f"a blur kernel of {h} x {w} is larger than the image of {height} x {width} pixels; "
            "give a smaller one"
        )
    padded = kernel.new_zeros(*kernel.shape[:-2], 1, height, width)
    padded[..., 0, :h, :w] = kernel
    centred: Tensor = torch.fft.fft2(padded.roll((-(h // 2), -(w // 2)), dims=(-2, -1)))
    return centred


def filtered(x: Tensor, response: Tensor) -> Tensor:
    """(B, C, H, W) with each frequency multiplied by that of ``response``."""
    spectrum: Tensor = torch.fft.fft2(x) * response
    image: Tensor = torch.fft.ifft2(spectrum)
    return image.real


def hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform of (..., H, W): real, symmetric, its own inverse."""
    spectrum: Tensor = torch.fft.fft2(x, norm="ortho")
    return spectrum.real - spectrum.imag
