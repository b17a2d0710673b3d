"""JPEG as an operator: what the codec keeps of an image (the survey's task 13).

ITU-T T.81 with the example tables of its Annex K, scaled as libjpeg does; JFIF colours.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from diffit.errors import UsageError
from diffit.restoration.operators.tensors import Constant

# Annex K.1, luminance and chrominance, row by row.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
) + (99,) * 32  # fmt: skip
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Jpeg:
    """y is the picture that a JPEG file of the image shows, unrounded and unclipped.

    Its gradient is that of the transforms without the rounding (straight through). A picture
    that JPEG has made comes back unchanged where the sides are multiples of 16 (8 for grey), so
    that the rough inverse is the picture itself.

    Args:
        shape: (1 or 3, H, W).
        quality: 1 to 100, of libjpeg's scale.
        subsample: halve the resolution of the colours (4:2:0), as cameras and Pillow do.
    """

    def __init__(self, shape: tuple[int, ...], quality: int, *, subsample: bool = True) -> None:
        if not 1 <= quality <= 100:
            raise UsageError(f"a JPEG quality of {quality}; give one from 1 to 100")
        if shape[0] not in (1, 3):
            raise UsageError(f"JPEG holds 1 or 3 channels, not {shape[0]}")
        self.shape = self.measured = tuple(shape)
        self._half = subsample and shape[0] == 3
        self._tables = Constant(torch.stack([_table(_LUMA, quality), _table(_CHROMA, quality)]))
        self._dct = Constant(_dct())
        ycc = torch.tensor(_YCC, dtype=torch.float64)
        self._ycc, self._rgb = Constant(ycc), Constant(torch.linalg.inv(ycc))

    def __call__(self, x: Tensor) -> Tensor:
        pixels = (x + 1) * 127.5
        if self.shape[0] == 1:
            return (self._quantised(pixels - 128, 0) + 128) / 127.5 - 1
        luma, *colours = torch.einsum("dc,bchw->dbhw", self._ycc.like(x), pixels)[:, :, None]
        planes = [self._quantised(luma - 128, 0) + 128, *map(self._chroma, colours)]
        pixels = torch.einsum("cd,bdhw->bchw", self._rgb.like(x), torch.cat(planes, dim=1))
        return pixels / 127.5 - 1

    def pinv(self, y: Tensor) -> Tensor:
        """A rough inverse: the picture itself."""
        return y

    def _chroma(self, plane: Tensor) -> Tensor:
        if not self._half:
            return self._quantised(plane, 1)
        height, width = plane.shape[-2:]
        small = F.avg_pool2d(_extended(plane, 2), 2)
        large = self._quantised(small, 1).repeat_interleave(2, -1).repeat_interleave(2, -2)
        return large[..., :height, :width]

    def _quantised(self, plane: Tensor, table: int) -> Tensor:
        """(B, 1, H, W) levels around 0, as their rounded cosine coefficients bring them back."""
        height, width = plane.shape[-2:]
        dct, steps = self._dct.like(plane), self._tables.like(plane)[table]
        whole = _extended(plane, 8)
        blocks = whole.reshape(len(plane), whole.shape[-2] // 8, 8, -1, 8).transpose(2, 3)
        coefficients = dct @ blocks @ dct.T / steps
        blocks = dct.T @ (rounded(coefficients) * steps) @ dct
        return blocks.transpose(2, 3).reshape(whole.shape)[..., :height, :width]


def rounded(x: Tensor) -> Tensor:
    """The nearest integer, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def _extended(plane: Tensor, multiple: int) -> Tensor:
    """(B, 1, H, W) with the last row and column repeated up to a multiple."""
    height, width = plane.shape[-2:]
    return F.pad(plane, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def _table(base: tuple[int, ...], quality: int) -> Tensor:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = (torch.tensor(base, dtype=torch.float64) * scale + 50).div(100, rounding_mode="floor")
    return steps.clamp(1, 255).reshape(8, 8)


def _dct() -> Tensor:
    """(8, 8) orthonormal cosine transform."""
    k, n = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    matrix = (math.pi * (n + 0.5) * k / 8).cos() / 2
    matrix[0] /= math.sqrt(2)
    return matrix
