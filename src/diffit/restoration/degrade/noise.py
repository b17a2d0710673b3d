"""Laws of noise: functions of (image, generator); images are in [-1, 1], or measurements."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Spoil = Callable[[Tensor, np.random.Generator], Tensor]


def gaussian(std: float) -> Spoil:
    """Normal noise of standard deviation ``std``, in the units of [-1, 1]."""

    def spoil(y: Tensor, generator: np.random.Generator) -> Tensor:
        return y if std == 0 else y + std * unit(y, generator)

    return spoil


def poisson(peak: float) -> Spoil:
    """Photon noise: a white pixel counts ``peak`` photons on average, a black one none."""

    def spoil(y: Tensor, generator: np.random.Generator) -> Tensor:
        rate = (y.double().cpu().clamp(-1, 1) + 1) * (peak / 2)
        counts = torch.from_numpy(generator.poisson(rate.numpy()).astype(np.float64))
        return (counts * (2 / peak) - 1).to(y)

    return spoil


def poisson_std(peak: float) -> float:
    """Standard deviation of `poisson` at mid-grey, in the units of [-1, 1]."""
    return float(2 * np.sqrt(0.5 / peak))


def speckle(std: float) -> Spoil:
    """Multiplicative noise: light of [0, 1] times 1 + ``std`` * a normal draw."""

    def spoil(y: Tensor, generator: np.random.Generator) -> Tensor:
        return (y + 1) * (1 + std * unit(y, generator)) - 1

    return spoil


def speckle_std(std: float) -> float:
    """Standard deviation of `speckle` at mid-grey, in the units of [-1, 1]."""
    return std


def unit(like: Tensor, generator: np.random.Generator) -> Tensor:
    """Unit normal draws in the shape, dtype and place of ``like``; the same for every dtype."""
    draw = generator.standard_normal(tuple(like.shape), dtype=np.float32)
    return torch.from_numpy(draw).to(like)
