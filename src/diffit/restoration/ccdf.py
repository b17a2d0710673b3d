"""CCDF: come closer, diffuse faster: a short way from a coarse estimate.

Chung, Sim and Ye, Come-Closer-Diffuse-Faster (arXiv:2112.05146), Algorithm 1: noise is added to an
estimate up to a level far below the highest, and from there each step is followed by the data step.
"""

from itertools import pairwise

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.errors import UsageError
from diffit.restoration.ilvr import replaced
from diffit.restoration.method import Noise, Restoration, restoration
from diffit.restoration.operators import LinearOperator
from diffit.samplers.steps import ancestral_step


def ccdf(
    denoise: Denoise,
    y: Tensor,
    operator: LinearOperator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    start: float = 0.5,
    clip: bool = True,
) -> Restoration:
    """Images that agree with y, from a coarse estimate on.

    Args:
        denoise: (x, sigma) to the clean image.
        y: (B, *measured).
        operator: linear.
        sigmas: (S + 1,) decreasing to 0; those above ``start`` are not gone through.
        noise: the next unit draw.
        sigma_y: not used: y is taken as it is.
        x: the coarse estimate, without noise; by default A+ y.
        start: noise level at which the way begins.
        clip: whether estimates are clipped to [-1, 1].
    """
    levels = sigmas[sigmas <= start]
    if not (levels > 0).any():
        raise UsageError(
            f"start is {start:g}, and no noise level lies between 0 and that; raise it, or take "
            "more steps"
        )
    known = operator.pinv(y)
    x = (known if x is None else x) + levels[0] * noise()
    for sigma, lower in pairwise(levels):
        clean = denoise(x, sigma)
        clean = clean.clamp(-1, 1) if clip else clean
        x = ancestral_step(x, clean, sigma, lower, noise())
        x = replaced(x, known, operator, lower * noise())
    return restoration(x, int(torch.sum(levels > 0)), operator, y)
