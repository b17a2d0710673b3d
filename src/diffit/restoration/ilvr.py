"""ILVR: at every level, what the operator sees of x becomes what it sees of the noised measurement.

Choi et al., ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models
(arXiv:2108.02938), Algorithm 1, with A+ A in the place of the low-pass filter: for average pooling
they are the same.
"""

from itertools import pairwise

from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.errors import UsageError
from diffit.restoration.method import Noise, Restoration, prior_noise, restoration
from diffit.restoration.operators import LinearOperator
from diffit.samplers.steps import ancestral_step


def ilvr(
    denoise: Denoise,
    y: Tensor,
    operator: LinearOperator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    until: float = 0.0,
    clip: bool = True,
) -> Restoration:
    """Images that agree with y.

    Args:
        denoise: (x, sigma) to the clean image.
        y: (B, *measured).
        operator: linear.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw.
        sigma_y: not used: y is taken as it is.
        x: the start; by default noise alone.
        until: share of the steps, at the end, that are left to the model alone.
        clip: whether estimates are clipped to [-1, 1].
    """
    if not 0 <= until < 1:
        raise UsageError(f"until is {until:g}; it must be at least 0 and less than 1")
    x, known = prior_noise(x, sigmas[0], noise), operator.pinv(y)
    guided = round((1 - until) * (len(sigmas) - 1))
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma)
        clean = clean.clamp(-1, 1) if clip else clean
        x = ancestral_step(x, clean, sigma, lower, noise())
        if step < guided:
            x = replaced(x, known, operator, lower * noise())
    return restoration(x, len(sigmas) - 1, operator, y)


def replaced(x: Tensor, known: Tensor, operator: LinearOperator, added: Tensor) -> Tensor:
    """x, in which A sees the known image and the noise that is added to it."""
    return x + known - operator.pinv(operator(x - added))
