"""The samplers of DDPM: ancestral, ancestral with learned variance, and DDIM."""

from typing import Literal

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise, Estimate, Estimator
from diffit.diffusion.posterior import log_variance, log_variance_bounds
from diffit.samplers.steps import Noise, ddim_step, posterior_mean, walk


@torch.no_grad()
def ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    variance: Literal["small", "large"] = "small",
) -> Tensor:
    """Draw each level from the posterior of the one above (arXiv:2006.11239, Algorithm 2).

    Args:
        denoise: (x, sigma) to the estimate of the clean image; guidance already inside.
        x: (B, C, H, W), distributed as clean + sigmas[0] * noise.
        sigmas: (S + 1,), decreasing; the last may be 0.
        noise: the next unit-normal draw; none is taken for a step to 0.
        variance: the posterior's own, or the larger one that the forward step adds.

    Returns:
        x at sigmas[-1]. Takes S evaluations.
    """
    for sigma, lower in walk(sigmas):
        clean = denoise(x, sigma)
        x = posterior_mean(x, clean, sigma, lower)
        if lower > 0:
            low, high = log_variance_bounds(sigma, lower)
            x = x + float((high if variance == "large" else low).div(2).exp()) * noise()
    return x


@torch.no_grad()
def ancestral_learned(estimate: Estimator, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Tensor:
    """`ancestral` with the variance that the network has learned (arXiv:2102.09672).

    ``estimate`` is (x, sigma) to an `Estimate`: `Denoiser.estimate`, or `guide_estimate` of it.
    """
    for sigma, lower in walk(sigmas):
        answer = estimate(x, sigma)
        if not isinstance(answer, Estimate):
            raise ValueError(
                "ancestral_learned needs an Estimate, from Denoiser.estimate or guide_estimate; "
                "a denoiser that has learned no variance is for `ancestral`"
            )
        x = posterior_mean(x, answer.clean, sigma, lower)
        if lower > 0:
            low, high = log_variance_bounds(sigma, lower)
            log = log_variance(answer.fraction, low.to(x.dtype), high.to(x.dtype))
            x = x + (log / 2).exp() * noise()
    return x


@torch.no_grad()
def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0
) -> Tensor:
    """DDIM (arXiv:2010.02502): eta = 0 is deterministic, eta = 1 is `ancestral`.

    Arguments as in `ancestral`; ``noise`` is asked only where eta is above 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}; it must lie between 0 and 1")
    if eta and noise is None:
        raise ValueError(f"eta is {eta:g}; above 0 DDIM needs noise")
    for sigma, lower in walk(sigmas):
        clean = denoise(x, sigma)
        fresh = noise() if noise is not None and eta and lower > 0 else torch.zeros_like(x)
        x = ddim_step(x, clean, sigma, lower, fresh, eta=eta)
    return x


def clipped(denoise: Denoise, *, bound: float = 1.0) -> Denoise:
    """``denoise`` with its estimate clipped to [-bound, bound], as pixels are."""
    return lambda x, sigma: denoise(x, sigma).clamp(-bound, bound)


def clipped_estimate(estimate: Estimator, *, bound: float = 1.0) -> Estimator:
    """`clipped` for an `Estimate`; the variance stays."""

    def clip(x: Tensor, sigma: Tensor) -> Estimate:
        clean, fraction = estimate(x, sigma)
        return Estimate(clean.clamp(-bound, bound), fraction)

    return clip
