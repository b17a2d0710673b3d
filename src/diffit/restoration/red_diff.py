"""RED-diff: one image is optimised, with the denoiser as its regulariser at all levels in turn.

Mardani et al., A Variational Perspective on Solving Inverse Problems with Diffusion Models
(arXiv:2305.04391), Eq. 9 and Algorithm 1. The published weight of a level, lambda sigma / alpha,
turns the residual of the noise into lambda times that of the image.
"""

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.errors import UsageError
from diffit.restoration.method import Noise, Restoration, restoration
from diffit.restoration.operators import Operator


def red_diff(
    denoise: Denoise,
    y: Tensor,
    operator: Operator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    weight: float = 0.25,
    rate: float = 0.1,
    clip: bool = True,
) -> Restoration:
    """An image that nearly agrees with y: the mode of an approximate posterior, not a sample.

    Args:
        denoise: (x, sigma) to the clean image; no gradient passes through it.
        y: (B, *measured).
        operator: differentiable, linear or not.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw.
        sigma_y: not used: ``weight`` is the trust in the model against that in y.
        x: where the optimisation begins; by default A+ y, or 0 if there is no inverse.
        weight: lambda.
        rate: learning rate of Adam.
        clip: whether estimates and result are clipped to [-1, 1].
    """
    if weight < 0 or rate <= 0:
        raise UsageError(f"weight ({weight:g}) must not be negative, rate ({rate:g}) above 0")
    image = (begin(operator, y) if x is None else x).detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([image], lr=rate, betas=(0.9, 0.99))
    steps = [sigma for sigma in sigmas if sigma > 0]
    for sigma in steps:
        with torch.no_grad():
            clean = denoise(image + sigma * noise(), sigma)
            clean = clean.clamp(-1, 1) if clip else clean
        with torch.enable_grad():
            # Means, as published; the batch is summed, so that no image sees another.
            gap = (operator(image) - y).abs().square().flatten(1).mean(1).sum() / 2
            pull = ((image.detach() - clean) * image).flatten(1).mean(1).sum()
            (image.grad,) = torch.autograd.grad(gap + weight * pull, image)
        optimiser.step()
    result = image.detach().clamp(-1, 1) if clip else image.detach()
    return restoration(result, len(steps), operator, y)


def begin(operator: Operator, y: Tensor) -> Tensor:
    """A+ y, or 0 where an operator has no inverse."""
    inverse = getattr(operator, "pinv", None)
    if inverse is None:
        return y.new_zeros(len(y), *operator.shape)
    found: Tensor = inverse(y)
    return found.clamp(-1, 1)
