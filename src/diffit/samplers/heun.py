"""EDM's samplers: Euler, and Heun with churn (arXiv:2206.00364, Algorithms 1 and 2)."""

import math

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.samplers.steps import Noise, euler_step, raise_step, walk


@torch.no_grad()
def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """Solve the probability-flow ODE in first order: DDIM with eta 0 in this coordinate.

    Args:
        denoise: (x, sigma) to the estimate of the clean image; guidance already inside.
        x: (B, C, H, W), distributed as clean + sigmas[0] * noise.
        sigmas: (S + 1,), decreasing; the last may be 0.
        noise: not used; all samplers are called alike.

    Returns:
        x at sigmas[-1]. Takes S evaluations.
    """
    for sigma, lower in walk(sigmas):
        x = euler_step(x, denoise(x, sigma), sigma, lower)
    return x


@torch.no_grad()
def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Tensor:
    """Solve the probability-flow ODE in second order; with churn, renoise before each step.

    Arguments as in `euler`, and:

    Args:
        noise: asked only at levels where churn acts.
        churn: S_churn; over the whole list x is raised by about this many times its level.
        churn_min, churn_max: S_min and S_max, the levels between which churn acts.
        churn_noise: S_noise; slightly above 1 makes up for detail lost.

    Returns:
        x at sigmas[-1]. Takes 2 S evaluations, one less if sigmas[-1] is 0.
    """
    if churn < 0:
        raise ValueError(f"churn is {churn:g}; it must not be negative")
    if churn and noise is None:
        raise ValueError(f"churn is {churn:g}; above 0 Heun's method needs noise")
    gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for sigma, lower in walk(sigmas):
        start = sigma
        if noise is not None and gamma and churn_min <= sigma <= churn_max:
            start = sigma * (1 + gamma)
            x = raise_step(x, sigma, start, churn_noise * noise())
        x = _heun_step(denoise, x, start, lower)
    return x


def _heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    clean = denoise(x, sigma)
    trial = euler_step(x, clean, sigma, lower)
    if lower == 0:  # the slope at 0 is 0 / 0, and Euler is exact there
        return trial
    slope = (x - clean) / float(sigma)
    slope_ahead = (trial - denoise(trial, lower)) / float(lower)
    return x + float(lower - sigma) * (slope + slope_ahead) / 2
