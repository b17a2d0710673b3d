"""DPS: each step follows the gradient of the distance to the measurement through the network.

Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems (arXiv:2209.14687),
Algorithm 1, with one norm for each image. The published step size is in the coordinates of x_t, in
which a step down moves x_s; here x_s is divided by sqrt(alpha-bar), and so is the gradient.
"""

from itertools import pairwise

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.restoration.method import Noise, Restoration, prior_noise, restoration
from diffit.restoration.operators import Operator


def dps(
    denoise: Denoise,
    y: Tensor,
    operator: Operator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    zeta: float = 1.0,
    clip: bool = True,
) -> Restoration:
    """Images that nearly agree with y, for operators of any kind.

    Args:
        denoise: (x, sigma) to the clean image, differentiable in x.
        y: (B, *measured).
        operator: differentiable, linear or not.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw.
        sigma_y: not used: the step size stands for the noise.
        x: the start; by default noise alone.
        zeta: step size; the paper takes 0.3 for blurs and super-resolution, 0.5 for inpainting, 1
            for phases.
        clip: whether estimates are clipped to [-1, 1], inside the gradient.
    """
    x = prior_noise(x, sigmas[0], noise)
    for sigma, lower in pairwise(sigmas):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            clean = denoise(at, sigma)
            clean = clean.clamp(-1, 1) if clip else clean
            norm = (y - operator(clean)).abs().square().flatten(1).sum(1).clamp(min=1e-24).sqrt()
            (gradient,) = torch.autograd.grad(norm.sum(), at)
        clean = clean.detach()
        # The posterior of DDPM, with its smaller variance.
        ratio = (lower / sigma) ** 2
        x = clean + ratio * (x - clean) + lower * (1 - ratio).clamp(min=0).sqrt() * noise()
        x = x - zeta * (1 + lower**2).sqrt() * (1 + sigma**2).sqrt() * gradient
    return restoration(x, len(sigmas) - 1, operator, y)
