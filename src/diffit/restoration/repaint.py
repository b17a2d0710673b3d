"""RePaint: known pixels are put in at every level, and the way is gone several times.

Lugmayr et al., RePaint: Inpainting using Denoising Diffusion Probabilistic Models
(arXiv:2201.09865), Algorithm 1 and the jumps of Appendix B. A jump back is an addition of noise.
"""

from itertools import pairwise

from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.errors import UsageError
from diffit.restoration.method import Noise, Restoration, prior_noise, restoration
from diffit.restoration.operators import Mask
from diffit.samplers.steps import ancestral_step, raise_step


def repaint(
    denoise: Denoise,
    y: Tensor,
    operator: Mask,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    jump_length: int = 10,
    jump_repeat: int = 10,
    clip: bool = True,
    paste_known: bool = True,
) -> Restoration:
    """Images whose known pixels are those of y.

    Args:
        denoise: (x, sigma) to the clean image.
        y: (B, C, H, W), zero where nothing is known.
        operator: a mask.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw.
        sigma_y: not used: y is taken as it is.
        x: the start; by default noise alone.
        jump_length: levels by which a jump goes back.
        jump_repeat: how often each stretch is gone; 1 is no jump.
        clip: whether estimates are clipped to [-1, 1].
        paste_known: put y into the result; the published algorithm does not.
    """
    if jump_length < 1 or jump_repeat < 1:
        raise UsageError(
            f"jump_length ({jump_length}) and jump_repeat ({jump_repeat}) must be 1 or more"
        )
    x, nfe = prior_noise(x, sigmas[0], noise), 0
    for here, there in pairwise(visited(len(sigmas) - 1, jump_length, jump_repeat)):
        sigma, other = sigmas[-1 - here], sigmas[-1 - there]
        if there > here:
            x = raise_step(x, sigma, other, noise())
            continue
        fresh = noise()
        if nfe:
            x = x + operator.keep(y + sigma * noise() - x)
        clean, nfe = denoise(x, sigma), nfe + 1
        clean = clean.clamp(-1, 1) if clip else clean
        x = ancestral_step(x, clean, sigma, other, fresh)
    if paste_known:
        x = x + operator.keep(y - x)
    return restoration(x, nfe, operator, y)


def visited(steps: int, length: int, repeat: int) -> list[int]:
    """Levels in the order of the published schedule, counted from 0 (no noise) to ``steps``."""
    left = dict.fromkeys(range(0, steps - length, length), repeat - 1)
    here, order = steps, [steps]
    while here > 0:
        here -= 1
        order.append(here)
        # Level k + 1 of this count is the published time k.
        if left.get(here - 1, 0) > 0:
            left[here - 1] -= 1
            order += range(here + 1, here + length + 1)
            here += length
    return order
