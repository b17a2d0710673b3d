"""One step between two noise levels: the formulas that samplers and restoration share.

In all of them x = clean + sigma * noise before the step, ``clean`` is an estimate, ``lower`` the
next level and ``noise`` a unit-normal draw shaped like x.
"""

import itertools
import math
from collections.abc import Callable, Iterator

from torch import Tensor

Level = Tensor | float
"""A noise level: a number, or a tensor of one element."""

Noise = Callable[[], Tensor]
"""Gives the next unit-normal draw, shaped like x."""


def walk(sigmas: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs (sigma, lower) of a level list, on the CPU; ValueError if it does not decrease."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas has shape {tuple(sigmas.shape)}; it must be (S + 1,) with S >= 1")
    sigmas = sigmas.cpu()
    if not sigmas.isfinite().all() or sigmas[-1] < 0:
        raise ValueError("sigmas must be finite and not negative")
    if (sigmas.diff() >= 0).any():
        raise ValueError("sigmas must decrease from each level to the next")
    return itertools.pairwise(sigmas)


def euler_step(x: Tensor, clean: Tensor, sigma: Level, lower: Level) -> Tensor:
    """Keep the noise in x and scale it down: the probability-flow ODE in first order, DDIM."""
    return clean + float(lower / sigma) * (x - clean)


def ancestral_step(x: Tensor, clean: Tensor, sigma: Level, lower: Level, noise: Tensor) -> Tensor:
    """Draw from DDPM's posterior (arXiv:2006.11239, Eq. 7), in the coordinate of sigma."""
    return ddim_step(x, clean, sigma, lower, noise, eta=1.0)


def ddim_step(
    x: Tensor, clean: Tensor, sigma: Level, lower: Level, noise: Tensor, *, eta: float
) -> Tensor:
    """Keep some of the noise in x, draw the rest anew (arXiv:2010.02502, Eq. 12 and 16)."""
    ratio = float(lower / sigma)
    fresh = eta * math.sqrt(1 - ratio**2)
    return clean + ratio * math.sqrt(1 - fresh**2) * (x - clean) + float(lower) * fresh * noise


def posterior_mean(x: Tensor, clean: Tensor, sigma: Level, lower: Level) -> Tensor:
    """Mean of x at the lower level, given x and the clean image."""
    return clean + float(lower / sigma) ** 2 * (x - clean)


def raise_step(x: Tensor, lower: Level, sigma: Level, noise: Tensor) -> Tensor:
    """Add noise, back up from the level ``lower`` to ``sigma``: churn, RePaint's jump."""
    return x + math.sqrt(float(sigma) ** 2 - float(lower) ** 2) * noise
