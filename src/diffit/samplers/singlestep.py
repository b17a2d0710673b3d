"""DPM-Solver++ singlestep (arXiv:2211.01095, Algorithm 1; arXiv:2206.00927, "fast" grouping).

The level list is cut into groups of two or three steps. Inside a group the intermediate levels are
the list's own, so that S steps take S evaluations whatever the order; nothing is remembered from
one group to the next.
"""

import math

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.samplers.exponential import moments
from diffit.samplers.steps import Noise, euler_step, walk


@torch.no_grad()
def dpmpp_singlestep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, order: int
) -> Tensor:
    """DPM-Solver++(2S, 3S): the flow in second or third order.

    Args:
        denoise: (x, sigma) to the estimate of the clean image; guidance already inside.
        x: (B, C, H, W), distributed as clean + sigmas[0] * noise.
        sigmas: (S + 1,), decreasing and, for full order, evenly spaced in log sigma or smoothly
            uneven; the last may be 0.
        noise: not used; all samplers are called alike.
        order: 2 or 3.

    Returns:
        x at sigmas[-1]. Takes S evaluations.
    """
    if order not in (2, 3):
        raise ValueError(f"order is {order}; singlestep DPM-Solver++ has orders 2 and 3")
    levels = [sigma for sigma, _ in walk(sigmas)]
    levels.append(sigmas[-1].cpu())
    place = 0
    for size in groups(len(levels) - 1, order, to_zero=bool(levels[-1] == 0)):
        x = _group(denoise, x, levels[place : place + size + 1])
        place += size
    return x


def groups(steps: int, order: int, *, to_zero: bool) -> list[int]:
    """Orders of the groups that ``steps`` evaluations are cut into; they add up to ``steps``.

    The remainder comes last, and a step to 0 stands alone: only first order makes sense there.
    Third order never ends on a full group: 9 steps are 3, 3, 2, 1, as published.
    """
    full, rest = divmod(steps - to_zero, order)
    if order == 3 and full and not rest and not to_zero:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + [rest] * (rest > 0) + [1] * to_zero


def _group(denoise: Denoise, x: Tensor, levels: list[Tensor]) -> Tensor:
    start, end = levels[0], levels[-1]
    here = denoise(x, start)
    if len(levels) == 2:
        return euler_step(x, here, start, end)
    h = math.log(start / end)
    r1 = math.log(start / levels[1]) / h
    ahead = denoise(euler_step(x, here, start, levels[1]), levels[1]) - here
    if len(levels) == 3:
        (whole,) = moments(h, 1)
        return euler_step(x, here, start, end) + whole / (2 * r1) * ahead
    r2 = math.log(start / levels[2]) / h
    _, first = moments(r2 * h, 2)
    trial = euler_step(x, here, start, levels[2]) + r2 / r1 * first * ahead
    further = denoise(trial, levels[2]) - here
    _, first = moments(h, 2)
    return euler_step(x, here, start, end) + first / r2 * further
