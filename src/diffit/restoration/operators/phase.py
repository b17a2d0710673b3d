"""Phase retrieval: the magnitude of an oversampled Fourier transform (the survey's task 16)."""

import torch
from torch import Tensor
from torch.nn import functional as F


class PhaseRetrieval:
    """y = |F pad(x)|, orthonormal; as DPS measures it (arXiv:2209.14687).

    Args:
        shape: (C, H, W).
        padding: zeros added at each end of a side, as a part of it.
    """

    def __init__(self, shape: tuple[int, ...], padding: float = 0.25) -> None:
        self.shape = tuple(shape)
        self._rows, self._columns = int(shape[1] * padding), int(shape[2] * padding)
        height, width = shape[1] + 2 * self._rows, shape[2] + 2 * self._columns
        self.measured: tuple[int, ...] = (shape[0], height, width)

    def __call__(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self._columns, self._columns, self._rows, self._rows))
        spectrum: Tensor = torch.fft.fft2(padded, norm="ortho")
        return spectrum.abs()

    def pinv(self, y: Tensor) -> Tensor:
        """A rough inverse: the image whose phases are all 0, symmetric around its middle."""
        image: Tensor = torch.fft.ifft2(y.to(y.dtype.to_complex()), norm="ortho")
        middle = image.real.roll((y.shape[-2] // 2, y.shape[-1] // 2), dims=(-2, -1))
        height, width = self.shape[1:]
        return middle[..., self._rows : self._rows + height, self._columns : self._columns + width]
