"""The forward SDE dx_t = f x_t dt + g dw of a sigma law (arXiv:2011.13456, Eq. 5).

Needed by steps that are published for x_t = a x: in the coordinate x every one of these processes
only adds noise.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffit.diffusion.laws import VE, VP, Flow, Law, SubVP, integral_of_beta


class Rates(NamedTuple):
    """Drift f x_t and diffusion g: per unit of time, or already those of one step."""

    f: Tensor
    g: Tensor


def rates(law: Law, t: Tensor) -> Rates:
    """f and g at time t (arXiv:2011.13456, Eq. 9-12; flow matching has the same marginals)."""
    match law:
        case VP():
            beta = law.low + t * (law.high - law.low)
            return Rates(-beta / 2, beta.sqrt())
        case SubVP():
            beta = law.low + t * (law.high - law.low)
            lost = -torch.expm1(-2 * integral_of_beta(t, law.low, law.high))
            return Rates(-beta / 2, (beta * lost).sqrt())
        case VE():
            span = torch.tensor(law.high / law.low, dtype=t.dtype).log()
            return Rates(torch.zeros_like(t), law.sigma(t) * (2 * span).sqrt())
        case Flow():
            return Rates(-1 / (1 - t), (2 * t / (1 - t)).sqrt())
    raise ValueError(f"{type(law).__name__} has no SDE in a time of its own")


def step_rates(law: Law, t: Tensor, steps: int = 1000) -> Rates:
    """f and g of the published discrete step at time t, one of ``steps`` from 0 to 1.

    VP takes DDPM's Markov chain, VE that of NCSN, the others Euler's step.
    """
    # A time found from its sigma may lie a rounding below the step that it belongs to.
    index = (t * (steps - 1) + 1e-9).floor()
    match law:
        case VP():
            share = index / (steps - 1)
            beta = (law.low + share * (law.high - law.low)) / steps
            return Rates((1 - beta).sqrt() - 1, beta.sqrt())
        case VE():
            here = law.sigma(index / (steps - 1))
            below = torch.where(index > 0, law.sigma((index - 1) / (steps - 1)), 0.0)
            return Rates(torch.zeros_like(t), (here**2 - below**2).sqrt())
    f, g = rates(law, t)
    return Rates(f / steps, g / steps**0.5)
