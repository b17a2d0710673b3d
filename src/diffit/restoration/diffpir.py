"""DiffPIR: each estimate is moved towards the measurement by a proximal step.

Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration (arXiv:2305.08995),
Algorithm 1 with Eq. 13 (the data step) and Eq. 14 and 15 (the way back to noise).
"""

from itertools import pairwise

from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.restoration.method import Noise, Restoration, prior_noise, restoration
from diffit.restoration.operators import LinearOperator

LEAST_NOISE = 0.002
"""Noise that a noiseless measurement is taken to have: 0.001 for pixels in [0, 1]."""


def diffpir(
    denoise: Denoise,
    y: Tensor,
    operator: LinearOperator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    weight: float = 1.0,
    zeta: float = 1.0,
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
        clip: whether estimates are clipped to [-1, 1], as the released code does.
    """
    x = prior_noise(x, sigmas[0], noise)
    spread = max(sigma_y, LEAST_NOISE)
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        clean = clean.clamp(-1, 1) if clip else clean
        clean = operator.prox(clean, y, float(weight * spread**2 / sigma**2))
        direction = (x - clean) / sigma
        x = clean + lower * ((1 - zeta) ** 0.5 * direction + zeta**0.5 * noise())
    return restoration(x, len(sigmas) - 1, operator, y)
