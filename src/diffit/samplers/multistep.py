"""DPM-Solver++ multistep (arXiv:2211.01095), for the probability flow and for its SDE.

One evaluation a step; higher orders come from the estimates of earlier steps.
"""

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.samplers.exponential import combine, moments, weights
from diffit.samplers.steps import Noise, walk


class Known(NamedTuple):
    """An estimate of the clean image, and -log of the level at which it was made."""

    position: float
    clean: Tensor


@torch.no_grad()
def dpmpp_multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, order: int
) -> Tensor:
    """DPM-Solver++(1M, 2M, 3M): the flow in first, second or third order.

    Args:
        denoise: (x, sigma) to the estimate of the clean image; guidance already inside.
        x: (B, C, H, W), distributed as clean + sigmas[0] * noise.
        sigmas: (S + 1,), decreasing; the last may be 0.
        noise: not used; all samplers are called alike.
        order: 1, 2 or 3; the first steps, and the last ones before a final 0, take less.

    Returns:
        x at sigmas[-1]. Takes S evaluations.
    """
    return _multistep(denoise, x, sigmas, order=order, noise=None)


@torch.no_grad()
def dpmpp_multistep_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, order: int
) -> Tensor:
    """SDE-DPM-Solver++(1, 2M, 3M): as `dpmpp_multistep`, with fresh noise in each step.

    Order 1 is `ancestral`; higher orders draw from the same distribution in fewer steps. As noise
    is not smooth along the way, order 3 converges in distribution no faster than order 2, but with
    a third of its error.
    """
    return _multistep(denoise, x, sigmas, order=order, noise=noise)


def _multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int, noise: Noise | None
) -> Tensor:
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; multistep DPM-Solver++ has orders 1, 2 and 3")
    known: deque[Known] = deque(maxlen=order)
    steps = list(walk(sigmas))
    for i, (sigma, lower) in enumerate(steps):
        known.appendleft(Known(-math.log(sigma), denoise(x, sigma)))
        # A step to 0 is infinitely long, so that only first order makes sense; the step before it
        # keeps to second.
        usable = len(known) if sigmas[-1] > 0 else min(len(known), len(steps) - i)
        x = _step(x, list(known)[:usable], float(sigma), float(lower), noise)
    return x


def _step(x: Tensor, known: list[Known], sigma: float, lower: float, noise: Noise | None) -> Tensor:
    """One step of order len(known); with ``noise``, of the SDE."""
    if lower == 0:
        return known[0].clean
    h = math.log(sigma / lower)
    ratio = lower / sigma
    # The SDE forgets x twice as fast as the flow: e^(-2 h) takes the place of e^(-h).
    rate = h if noise is None else 2 * h
    drift = combine([k.clean for k in known], extrapolation(known, h, rate))
    if noise is None:
        return ratio * x + drift
    return ratio**2 * x + drift + lower * math.sqrt(1 - ratio**2) * noise()


def extrapolation(known: list[Known], h: float, rate: float) -> list[float]:
    """Weights of the known estimates in a step of length h with kernel e^(-rate (1 - u))."""
    nodes = [(k.position - known[0].position) / h for k in known]
    if len(known) != 2:
        # Order 3 is the exact integral of the parabola through three estimates. The published
        # third-order multistep code halves the parabola's u^2 term, which leaves second order.
        return weights(nodes, rate)
    # The paper's own second order (Algorithm 2): half the moment 0 in place of the moment 1.
    (whole,) = moments(rate, 1)
    slope = whole / 2 / nodes[1]
    return [whole - slope, slope]
