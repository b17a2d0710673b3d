"""PiGDM: the pseudo-inverse of what is still missing, led back through the network.

Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems (ICLR 2023), Eq. 7 and
Algorithm 1. In this library's coordinate the published weight sqrt(alpha-bar_s alpha-bar_t) is 1.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.restoration.method import Noise, Restoration, restoration
from diffit.restoration.operators import Operator, is_linear
from diffit.samplers.steps import ddim_step


def pigdm(
    denoise: Denoise,
    y: Tensor,
    operator: Operator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    eta: float = 1.0,
    adaptive: bool = True,
    clip: bool = False,
) -> Restoration:
    """Images that nearly agree with y, in few steps; of a nonlinear operator, by its rough inverse.

    Args:
        denoise: (x, sigma) to the clean image, differentiable in x.
        y: (B, *measured).
        operator: linear, or with a ``pinv`` such as the decoder of JPEG.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw.
        sigma_y: standard deviation of the noise of y; of nonlinear operators it is not used.
        x: the start; by default the pseudo-inverse of y, with noise.
        eta: 0 is deterministic after the start, 1 draws as much noise anew as DDPM.
        adaptive: the published weight; False is the one that follows from the score alone.
        clip: whether estimates are clipped to [-1, 1], inside the gradient.
    """
    inverse: Any = operator
    if x is None:
        x = inverse.pinv(y) + sigmas[0] * noise()
    for sigma, lower in pairwise(sigmas):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            clean = denoise(at, sigma)
            clean = clean.clamp(-1, 1) if clip else clean
            missing = _missing(inverse, y, clean.detach(), sigma, sigma_y)
            (gradient,) = torch.autograd.grad((missing * clean).sum(), at)
        clean = clean.detach()
        fresh = eta * (1 - (lower / sigma) ** 2).clamp(min=0).sqrt()
        kept = lower * (1 - fresh**2).sqrt()
        weight = 1.0 if adaptive else 1 - kept / sigma
        x = ddim_step(x, clean, sigma, lower, noise(), eta=eta) + weight * gradient
    return restoration(x.detach(), len(sigmas) - 1, operator, y)


def _missing(operator: Any, y: Tensor, clean: Tensor, sigma: Tensor, sigma_y: float) -> Tensor:
    """What an estimate lacks of the measurement, as an image."""
    if not is_linear(operator):
        missing: Tensor = operator.pinv(y) - operator.pinv(operator(clean))
        return missing
    if sigma_y == 0:
        found: Tensor = operator.pinv(y - operator(clean))
        return found
    # r^2 A'(r^2 A A' + sigma_y^2)^-1, with r^2 = sigma^2 / (1 + sigma^2), is a proximal step.
    step: Tensor = operator.prox(clean, y, float(sigma_y**2 * (1 + sigma**2) / sigma**2)) - clean
    return step
