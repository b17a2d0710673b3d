"""The Gaussian posterior of one denoising step, its learned variance, and likelihoods in nats.

With x at level s (sigma) and the clean image known, x at the lower level l is Gaussian with mean
clean + (l / s)^2 (x - clean) and variance l^2 (1 - l^2 / s^2): DDPM's posterior (arXiv:2006.11239,
Eq. 7) in the coordinate x = x_t / a.
"""

import math

import torch
from torch import Tensor


def log_variance_bounds(
    sigma: Tensor, lower: Tensor, above: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logs of the posterior variance and of the step's added variance, at the level ``lower``.

    Between them lies a learned log variance (arXiv:2102.09672, Eq. 15).

    Args:
        sigma: (...) float64 levels.
        lower: (...) levels below; 0 is the clean image.
        above: the level above sigma in the list. Where lower is 0 the posterior variance is 0 as
            well; the published code puts there that of the step above. Without ``above`` it is 0.
    """
    # For numbers near 1 both differences keep their digits: s and l differ by percents.
    low = (lower**2 * (1 - (lower / sigma) ** 2)).log()
    high = ((sigma**2 - lower**2) * (1 + lower**2) / (1 + sigma**2)).log()
    if above is not None:
        # In the published state x_t, whose signal at the level sigma is (1 + sigma^2)^-1/2.
        ground = (sigma**2 * (1 - (sigma / above) ** 2) / (1 + sigma**2)).log()
        low = torch.where(lower == 0, ground, low)
    return low, high


def log_variance(fraction: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The log variance at ``fraction`` of the way from low to high."""
    return low + fraction * (high - low)


def gaussian_kl(difference: Tensor, log_variance_p: Tensor, log_variance_q: Tensor) -> Tensor:
    """KL(p || q) in nats of two Gaussians, elementwise; ``difference`` of their means."""
    ratio = log_variance_p - log_variance_q
    return 0.5 * (torch.expm1(ratio) - ratio + difference**2 * (-log_variance_q).exp())


def pixel_nll(clean: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-ln P(pixel) in nats, elementwise: the Gaussian's mass in the pixel's bin.

    Pixels are the 256 values k / 127.5 - 1; the bins end half way, 1 / 255 off, and the outermost
    reach to infinity (arXiv:2006.11239, Eq. 13).
    """
    scale = (-0.5 * log_variance).exp()
    above = (clean - mean + 1 / 255) * scale
    below = (clean - mean - 1 / 255) * scale
    inside = normal_cdf(above) - normal_cdf(below)
    mass = torch.where(
        clean < -0.999,
        normal_cdf(above),
        torch.where(clean > 0.999, 1 - normal_cdf(below), inside),
    )
    return -mass.clamp(min=1e-12).log()


def normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the published likelihoods, so that ours can be compared."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
