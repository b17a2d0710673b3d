"""UniPC (arXiv:2302.04867): a multistep predictor, and a corrector that costs no evaluation."""

import math
from collections import deque
from typing import Literal

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.samplers.exponential import combine, moments, weights
from diffit.samplers.multistep import Known
from diffit.samplers.steps import Noise, euler_step, walk


@torch.no_grad()
def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    order: int = 3,
    variant: Literal["bh1", "bh2"] = "bh2",
) -> Tensor:
    """UniPC-p: predicts in order p, corrects to order p + 1 with the estimate made ahead.

    Args:
        denoise: (x, sigma) to the estimate of the clean image; guidance already inside.
        x: (B, C, H, W), distributed as clean + sigmas[0] * noise.
        sigmas: (S + 1,), decreasing; the last may be 0.
        noise: not used; all samplers are called alike.
        order: p, 1 to 3; the first steps, and the last ones before a final 0, take less.
        variant: B(h) = h (bh1) or e^h - 1 (bh2). It matters only where the paper shortens its
            equations, in the predictor of order 2 and the corrector of order 1.

    Returns:
        x at sigmas[-1]. Takes S evaluations: the one at the end of a step serves as the first of
        the next.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; UniPC has orders 1, 2 and 3")
    steps = list(walk(sigmas))
    known: deque[Known] = deque(maxlen=order)
    known.append(Known(-math.log(steps[0][0]), denoise(x, steps[0][0])))
    for i, (sigma, lower) in enumerate(steps):
        if lower == 0:
            return known[0].clean
        left = len(steps) - i if sigmas[-1] == 0 else order
        past = list(known)[: min(len(known), left)]
        h = math.log(sigma / lower)
        base = euler_step(x, past[0].clean, sigma, lower)
        trial = base + _correction(past, None, h, variant)
        ends = i == len(steps) - 1
        if ends:
            return trial
        known.appendleft(Known(-math.log(lower), denoise(trial, lower)))
        x = base + _correction(past, known[0].clean, h, variant)
    return x


def _correction(
    past: list[Known], ahead: Tensor | None, h: float, variant: Literal["bh1", "bh2"]
) -> Tensor | float:
    """What earlier estimates, and the one ahead if it is known, add to an Euler step."""
    nodes = [(k.position - past[0].position) / h for k in past]
    estimates = [k.clean for k in past]
    if ahead is not None:
        nodes.append(1.0)
        estimates.append(ahead)
    differences = [estimate - estimates[0] for estimate in estimates[1:]]
    if not differences:
        return 0.0
    if len(differences) == 1:
        (whole,) = moments(h, 1)
        return (h if variant == "bh1" else whole) / 2 / nodes[1] * differences[0]
    return combine(differences, weights(nodes, h)[1:])
