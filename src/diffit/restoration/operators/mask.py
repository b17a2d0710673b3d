"""Inpainting: some pixels are known (the survey's task 6)."""

import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.operators.operator import SpectralOperator
from diffit.restoration.operators.tensors import Constant, over


class Mask(SpectralOperator):
    """y = mask * x: measurements have the shape of the image, with zeros where nothing is known.

    Args:
        shape: (C, H, W).
        mask: 1 where known, 0 where not; (H, W), (1 or C, H, W), or with a leading axis of B for
            one mask an image.
    """

    def __init__(self, shape: tuple[int, ...], mask: Tensor) -> None:
        self.shape = self.measured = tuple(shape)
        if mask.ndim not in (2, 3, 4) or mask.shape[-2:] != torch.Size(shape[-2:]):
            raise UsageError(
                f"the mask is {_sides(tuple(mask.shape))} pixels and the image "
                f"{_sides(self.shape)}; give a mask of the size of the image"
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise UsageError("a mask holds values other than 0 (unknown) and 1 (known)")
        if mask.ndim > 2 and mask.shape[-3] not in (1, shape[0]):
            raise UsageError(f"the mask has {mask.shape[-3]} channels; give 1 or {shape[0]}")
        self.mask = mask.double().expand(*mask.shape[:-3], *shape).contiguous()
        """1 where known, float64: (C, H, W) or (B, C, H, W)."""
        self.singulars = self.mask.flatten(-3)
        self._mask = Constant(self.mask)

    def __call__(self, x: Tensor) -> Tensor:
        return self.keep(x)

    def keep(self, y: Tensor) -> Tensor:
        """A measurement with zeros where nothing is measured."""
        # A product would carry what is not finite through the zeros of the mask.
        return torch.where(self._mask.like(y) > 0, y, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.keep(y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.keep(y)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        weight = over(rho, z)
        return torch.where(self._mask.like(z) > 0, (y + weight * z) / (1 + weight), z)

    def vt(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def v(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), *self.shape)

    def ut(self, y: Tensor) -> Tensor:
        return self.keep(y).flatten(1)

    def u(self, z: Tensor) -> Tensor:
        return self.keep(self.v(z))


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[-2:]))
