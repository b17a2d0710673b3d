"""DDNM and DDNM+: the range space from the measurement, the null space from the model.

Wang, Yu and Zhang, Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model
(arXiv:2212.00490), Algorithm 1 (noiseless), Eq. 18 and 19 with Appendix C (DDNM+), and time travel
(Algorithm 2). The released code of DDNM+ leaves V' out for all operators but masks and denoising;
here the formulas of the paper hold for all.
"""

from itertools import pairwise

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.restoration.method import Noise, Restoration, prior_noise, pseudo_inverse, restoration
from diffit.restoration.operators import LinearOperator, SpectralOperator


def ddnm(
    denoise: Denoise,
    y: Tensor,
    operator: LinearOperator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    eta: float | None = None,
    travel_length: int = 1,
    travel_repeat: int = 1,
    clip: bool = True,
) -> Restoration:
    """Images that agree with y, to rounding where there is no noise.

    Args:
        denoise: (x, sigma) to the clean image.
        y: (B, *measured).
        operator: linear; for noisy measurements with its singular value decomposition.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw.
        sigma_y: standard deviation of the noise of y; above 0 this is DDNM+.
        x: the start; by default noise alone.
        eta: how much of the noise of each level is drawn anew; 0 is deterministic without noise in
            y. By default 1 without, which small models do best with, and with it the paper's 0.85.
        travel_length: levels by which time travel goes back at once.
        travel_repeat: how often each stretch is gone; 1 is no time travel.
        clip: whether estimates are clipped to [-1, 1], as the released code does.
    """
    eta = (0.85 if sigma_y > 0 else 1.0) if eta is None else eta
    x, nfe = prior_noise(x, sigmas[0], noise), 0
    clean = x
    for here, there in pairwise(visited(len(sigmas) - 1, travel_length, travel_repeat)):
        sigma, other = sigmas[-1 - here], sigmas[-1 - there]
        if there > here:  # back up, from the last estimate before y was put in
            x = clean + other * noise()
            continue
        clean, nfe = denoise(x, sigma), nfe + 1
        # The direction is that of the estimate itself, as the released code clips both.
        clean = clean.clamp(-1, 1) if clip else clean
        direction = (x - clean) / sigma
        if sigma_y > 0:
            assert isinstance(operator, SpectralOperator)
            x = _noisy_step(operator, y, clean, direction, other, noise(), sigma_y, eta)
        else:
            fresh = eta * noise() + (1 - eta**2) ** 0.5 * direction
            x = pseudo_inverse(operator, y, clean) + other * fresh
    return restoration(x, nfe, operator, y)


def visited(steps: int, length: int, repeat: int) -> list[int]:
    """Levels in the order of the released schedule, counted from 0 (no noise) to ``steps``."""
    left = dict.fromkeys(range(0, steps - length, length), repeat - 1)
    here, order = steps - 1, [steps - 1]
    while here >= 0:
        if left.get(here, 0) > 0 and here != steps - 1:
            left[here] -= 1
            order += range(here + 1, here + length + 1)
            here += length
        here -= 1
        order.append(here)
    return [level + 1 for level in order]


def _noisy_step(
    operator: SpectralOperator,
    y: Tensor,
    clean: Tensor,
    direction: Tensor,
    lower: Tensor,
    fresh: Tensor,
    sigma_y: float,
    eta: float,
) -> Tensor:
    """One step of DDNM+, along each singular direction."""
    s = operator.singulars.to(clean)
    known = s > 0
    error = torch.where(known, sigma_y / s.clamp(min=1e-300), torch.inf)
    keep = (1 - eta**2) ** 0.5
    quiet = lower >= error
    # How much of y enters, and how much noise the level still lacks then.
    share = torch.where(known, torch.where(quiet, 1.0, lower * keep / error), 0.0)
    drawn = torch.where(quiet, (lower**2 - error**2).clamp(min=0).sqrt(), lower * eta)
    along = torch.where(known, 0.0, lower * keep)
    gap = torch.where(known, (operator.ut(y) - s * operator.vt(clean)) / s.clamp(min=1e-300), 0.0)
    move = share * gap + drawn * operator.vt(fresh) + along * operator.vt(direction)
    return clean + operator.v(move)
