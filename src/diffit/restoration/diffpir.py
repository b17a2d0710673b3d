"""DiffPIR: each estimate is moved towards the measurement by a proximal step.

Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration (arXiv:2305.08995),
Algorithm 1 with Eq. 13 (the data step) and Eq. 14 and 15 (the way back to noise).
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.restoration.method import Noise, Restoration, prior_noise, restoration
from diffit.restoration.operators import LinearOperator

LEAST_NOISE = 0.002
"""Noise that a noiseless measurement is taken to have."""


def diffpir(
    denoise: Denoise,
    y: Tensor,
    operator: LinearOperator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    weight: float = 4.0,
    zeta: float = 1.0,
    eta: float = 0.0,
    beta: Callable[[Tensor], Tensor] | None = None,
    clip: bool = True,
) -> Restoration:
    """Images that agree with y as far as its noise allows.

    Args:
        denoise: (x, sigma) to the clean image.
        y: (B, *measured).
        operator: linear.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw.
        sigma_y: standard deviation of the noise of y.
        x: the start; by default noise alone.
        weight: lambda, the trust in the model against that in y.
        zeta: share of the variance of each level that is drawn anew.
        eta: how much of DDPM's noise the rest of it holds, drawn before that of ``zeta``.
        beta: sigma to the variance of the published discrete step there, for ``eta``; by default
            that of the step that is taken.
        clip: whether estimates are clipped to [-1, 1], as the released code does.
    """
    x = prior_noise(x, sigmas[0], noise)
    spread = max(sigma_y, LEAST_NOISE)
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        clean = clean.clamp(-1, 1) if clip else clean
        # The published rho has the noise of pixels in [0, 1] over the level of those in [-1, 1].
        clean = operator.prox(clean, y, float(weight * (spread / 2) ** 2 / sigma**2))
        kept = lower * (x - clean) / sigma
        if eta > 0:
            drawn = _ddpm_noise(sigma, lower, beta) * eta
            kept = (lower**2 - drawn**2).clamp(min=0).sqrt() * (x - clean) / sigma
            kept = kept + drawn * noise()
        x = clean + (1 - zeta) ** 0.5 * kept + zeta**0.5 * lower * noise()
    return restoration(x, len(sigmas) - 1, operator, y)


def _ddpm_noise(sigma: Tensor, lower: Tensor, beta: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Standard deviation of the noise of DDPM's step, in the coordinate of sigma."""
    step = 1 - (1 + lower**2) / (1 + sigma**2) if beta is None else beta(sigma)
    # Of x_t it is sqrt((1 - a_s) / (1 - a_t) beta), a = 1 / (1 + sigma^2).
    return lower / sigma * ((1 + sigma**2) * step).sqrt()
