"""Accelerated magnetic resonance imaging: some lines of frequencies are measured (task 25).

Two dimensions, one coil, images without phase: y = M F x with real x.
"""

import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.operators.circular_blur import hartley
from diffit.restoration.operators.operator import SpectralOperator, inverse
from diffit.restoration.operators.tensors import Constant


class Fourier(SpectralOperator):
    """y is the orthonormal Fourier transform where it is sampled, and zero elsewhere.

    The image is real, so that frequencies k and -k say the same: a singular value is 1 where both
    are sampled, the root of 1/2 where one is. The Hartley transform holds the directions.

    Args:
        shape: (C, H, W).
        sampled: (H, W), or (B, H, W) for one pattern an image; 1 where a frequency is measured,
            in the order of the FFT, frequency 0 first.
    """

    def __init__(self, shape: tuple[int, ...], sampled: Tensor) -> None:
        if sampled.ndim not in (2, 3) or tuple(sampled.shape[-2:]) != tuple(shape[-2:]):
            raise UsageError(
                f"the pattern of frequencies has shape {tuple(sampled.shape)}; the image is "
                f"{shape[1]} x {shape[2]}"
            )
        if not ((sampled == 0) | (sampled == 1)).all():
            raise UsageError("the pattern of frequencies holds values other than 0 and 1")
        self.shape = tuple(shape)
        self.measured = (shape[0], 2, *shape[1:])
        """Channels, (real, imaginary), height, width."""
        sampled = sampled.double()
        opposite = sampled.flip((-2, -1)).roll((1, 1), dims=(-2, -1))
        singulars = ((sampled + opposite) / 2).sqrt()[..., None, :, :]
        self.singulars = singulars.expand(*sampled.shape[:-2], *shape).flatten(-3)
        self._sampled = Constant(sampled[..., None, None, :, :])
        self._inverse = Constant(inverse(self.singulars))

    def __call__(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.fft2(x, norm="ortho")
        return self.keep(torch.view_as_real(spectrum).movedim(-1, 2))

    def keep(self, y: Tensor) -> Tensor:
        """A measurement with zeros where nothing is measured."""
        return torch.where(self._sampled.like(y) > 0, y, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        real, imaginary = self.keep(y).unbind(2)
        image: Tensor = torch.fft.ifft2(torch.complex(real, imaginary), norm="ortho")
        return image.real

    def vt(self, x: Tensor) -> Tensor:
        return hartley(x).flatten(1)

    def v(self, z: Tensor) -> Tensor:
        return hartley(z.reshape(len(z), *self.shape))

    def ut(self, y: Tensor) -> Tensor:
        return self._inverse.like(y) * self.vt(self.adjoint(y))

    def u(self, z: Tensor) -> Tensor:
        return self(self.v(self._inverse.like(z) * z))
