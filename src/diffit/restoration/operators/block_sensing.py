"""Block compressed sensing: random orthonormal projections of small blocks (task 12)."""

import numpy as np
import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.operators.operator import SpectralOperator
from diffit.restoration.operators.tensors import Constant


class BlockSensing(SpectralOperator):
    """y holds, for each block and channel, the products with random orthonormal images.

    Args:
        shape: (C, H, W).
        ratio: block^2 / ratio products are measured, rounded down.
        generator: of the orthonormal images, the same for every block.
        block: side of a block; it divides H and W.
    """

    def __init__(
        self, shape: tuple[int, ...], ratio: int, generator: np.random.Generator, *, block: int = 8
    ) -> None:
        if block < 1 or shape[1] % block or shape[2] % block:
            raise UsageError(
                f"blocks of {block} x {block} do not divide {shape[1]} x {shape[2]} pixels; "
                "crop the image to a multiple of the block"
            )
        if ratio < 1 or block**2 < ratio:
            raise UsageError(f"a ratio of 1 / {ratio} measures nothing of {block**2} pixels")
        self.shape, self.block = tuple(shape), block
        self._grid = (shape[1] // block, shape[2] // block)
        self._known = block**2 // ratio
        self.measured = (shape[0], self._known, *self._grid)
        draw = torch.from_numpy(generator.standard_normal((block**2, block**2)))
        self._basis = Constant(torch.linalg.qr(draw).Q)
        known = torch.arange(block**2) < self._known
        cells = known.double()[:, None, None].expand(shape[0], -1, *self._grid)
        self.singulars = cells.flatten()

    def vt(self, x: Tensor) -> Tensor:
        b, (rows, columns) = self.block, self._grid
        blocks = x.reshape(len(x), -1, rows, b, columns, b).permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
        return torch.einsum("kp,bcphw->bckhw", self._basis.like(x), blocks).flatten(1)

    def v(self, z: Tensor) -> Tensor:
        b, (rows, columns) = self.block, self._grid
        cells = z.reshape(len(z), self.shape[0], b * b, rows, columns)
        blocks = torch.einsum("kp,bckhw->bcphw", self._basis.like(z), cells)
        split = blocks.reshape(len(z), -1, b, b, rows, columns).permute(0, 1, 4, 2, 5, 3)
        return split.reshape(len(z), *self.shape)

    def ut(self, y: Tensor) -> Tensor:
        rest = y.new_zeros(len(y), self.shape[0], self.block**2 - self._known, *self._grid)
        return torch.cat([y, rest], dim=2).flatten(1)

    def u(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), self.shape[0], -1, *self._grid)[:, :, : self._known]
