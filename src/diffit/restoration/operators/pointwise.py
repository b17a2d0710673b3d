"""Nonlinear operators of single pixels: few bits, over-exposure (the survey's tasks 14 and 15)."""

from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.operators.jpeg import rounded


class Quantise:
    """y is the image rounded to 2^bits levels from -1 to 1; its gradient is the identity's.

    Args:
        shape: (C, H, W).
        bits: 1 to 8.
    """

    def __init__(self, shape: tuple[int, ...], bits: int) -> None:
        if not 1 <= bits <= 8:
            raise UsageError(f"a pixel of {bits} bits; give 1 to 8")
        self.shape = self.measured = tuple(shape)
        self._step: float = 2 / (2**bits - 1)

    def __call__(self, x: Tensor) -> Tensor:
        return rounded((x + 1) / self._step) * self._step - 1

    def pinv(self, y: Tensor) -> Tensor:
        """A rough inverse: the picture itself."""
        return y


class Clip:
    """y = clip(gain x, -1, 1): too bright and too dark pixels are lost.

    Args:
        shape: (C, H, W).
        gain: at least 1; 2 is the "HDR" task of RED-diff (arXiv:2305.04391).
    """

    def __init__(self, shape: tuple[int, ...], gain: float = 2.0) -> None:
        if not gain >= 1:
            raise UsageError(f"a gain of {gain} clips nothing; give 1 or more")
        self.shape = self.measured = tuple(shape)
        self.gain = gain

    def __call__(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(-1, 1)

    def pinv(self, y: Tensor) -> Tensor:
        """A rough inverse: the contrast undone, what was clipped at its least."""
        return y / self.gain
