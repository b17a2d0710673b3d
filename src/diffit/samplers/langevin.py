"""Predictor-corrector sampling and annealed Langevin dynamics (arXiv:2011.13456, 1907.05600).

The score of x at a level is (clean - x) / sigma^2. A Langevin step keeps x at its level, a
predictor takes it to the next.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise, over
from diffit.diffusion.sde import Rates
from diffit.samplers.steps import Noise, posterior_mean, walk


class Move(NamedTuple):
    """Where a predictor goes without its noise, and how much noise it adds."""

    mean: Tensor
    std: float


Predictor = Callable[[Tensor, Tensor, Tensor, Tensor], Move]
"""(x, clean, sigma, lower) to a `Move`."""

Measure = Literal["image", "batch", "level"]

CORRECTORS: dict[str, Measure] = {"langevin": "image", "ald": "level"}
"""Name to what a Langevin step is measured by; ald is annealed Langevin dynamics."""

PUBLISHED_STEP = 0.062
"""NCSNv2's step 6.2e-6 (arXiv:2006.09011) in units of its lowest level squared, 0.01^2."""


def reverse_diffusion(x: Tensor, clean: Tensor, sigma: Tensor, lower: Tensor) -> Move:
    """The reverse SDE in this coordinate, its noise undone as it was added: sigma^2 - lower^2."""
    mean = posterior_mean(x, clean, sigma, lower)
    return Move(mean, math.sqrt(float(sigma) ** 2 - float(lower) ** 2))


def ancestral_move(x: Tensor, clean: Tensor, sigma: Tensor, lower: Tensor) -> Move:
    """DDPM's posterior, which adds a little less noise."""
    mean = posterior_mean(x, clean, sigma, lower)
    return Move(mean, float(lower) * math.sqrt(1 - float(lower / sigma) ** 2))


def euler_maruyama(x: Tensor, clean: Tensor, sigma: Tensor, lower: Tensor) -> Move:
    """Euler's step of the reverse SDE with sigma as its time: variance 2 sigma (sigma - lower)."""
    share = 2 * (1 - float(lower / sigma))
    return Move(x + share * (clean - x), float(sigma) * math.sqrt(share))


PREDICTORS: dict[str, Predictor] = {
    "reverse-diffusion": reverse_diffusion,
    "ancestral": ancestral_move,
    "euler-maruyama": euler_maruyama,
}
"""Name to predictor; those of other coordinates are `published_step` and `published_ancestral`."""


def published_step(
    *, signal: Callable[[Tensor], Tensor], rates: Callable[[Tensor], Rates]
) -> Predictor:
    """A step of the reverse SDE as published, for x_t = a x: x_t - f x_t + g^2 score + g noise.

    Args:
        signal: sigma to a, `Formulation.signal`.
        rates: sigma to the f and g of the whole step: `diffit.diffusion.sde.step_rates` makes the
            reverse-diffusion predictor, f dt and g sqrt(dt) of `rates` that of Euler-Maruyama.
    """

    def predict(x: Tensor, clean: Tensor, sigma: Tensor, lower: Tensor) -> Move:
        here, there = float(signal(sigma)), float(signal(lower))
        f, g = (float(rate) for rate in rates(sigma))
        score = (clean - x) / (here * float(sigma) ** 2)
        return Move(((1 - f) * here * x + g**2 * score) / there, g / there)

    return predict


def published_ancestral(
    *, signal: Callable[[Tensor], Tensor], beta: Callable[[Tensor], Tensor]
) -> Predictor:
    """DDPM's step with its large variance as published for VP: (x_t + beta score) / sqrt(1 - beta).

    Args:
        signal: sigma to a, `Formulation.signal`.
        beta: sigma to the variance that the step at that level adds.
    """

    def predict(x: Tensor, clean: Tensor, sigma: Tensor, lower: Tensor) -> Move:
        here, there, b = float(signal(sigma)), float(signal(lower)), float(beta(sigma))
        score = (clean - x) / (here * float(sigma) ** 2)
        return Move((here * x + b * score) / math.sqrt(1 - b) / there, math.sqrt(b) / there)

    return predict


def named_predictor_corrector(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    corrections: int = 1,
    snr: float = 0.16,
    predictor: str = "reverse-diffusion",
    corrector: str = "langevin",
) -> Tensor:
    """`predictor_corrector` with a predictor of `PREDICTORS`, a corrector of `CORRECTORS`."""
    for name, table in ((predictor, PREDICTORS), (corrector, CORRECTORS)):
        if name not in table:
            raise ValueError(f"there is no {name!r}; choose from {', '.join(table)}")
    return predictor_corrector(
        denoise,
        x,
        sigmas,
        noise=noise,
        corrections=corrections,
        snr=snr,
        predict=PREDICTORS[predictor],
        measure=CORRECTORS[corrector],
    )


@torch.no_grad()
def predictor_corrector(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    corrections: int = 1,
    snr: float = 0.16,
    predict: Predictor = reverse_diffusion,
    factor: Callable[[Tensor], Tensor] | None = None,
    measure: Measure = "image",
) -> Tensor:
    """At each level Langevin steps, then one step of a predictor (arXiv:2011.13456, Algorithm 1).

    Args:
        denoise: (x, sigma) to the estimate of the clean image; guidance already inside.
        x: (B, C, H, W), distributed as clean + sigmas[0] * noise.
        sigmas: (S + 1,), decreasing; the last may be 0.
        noise: the next unit-normal draw.
        corrections: Langevin steps at each level.
        snr: r, how long a Langevin step is against the norm of its noise.
        predict: takes x from one level to the next.
        factor: sigma to a factor of the squared step, 1 - beta in the published VP code.
        measure: what a Langevin step is measured by: the norm of each image's score; that of the
            batch on average as in the published code, which makes an image depend on the others
            and is for comparison alone; or the level, as annealed Langevin dynamics.

    Returns:
        x at sigmas[-1], the last step without its noise. Takes S (corrections + 1) evaluations.
    """
    if corrections < 0 or snr <= 0:
        raise ValueError(f"corrections ({corrections}) must not be negative, snr ({snr:g}) above 0")
    mean = x
    for sigma, lower in walk(sigmas):
        scale = 1.0 if factor is None else float(factor(sigma))
        for _ in range(corrections):
            score, draw = (denoise(x, sigma) - x) / float(sigma) ** 2, noise()
            length = _length(score, draw, sigma, measure)
            x = langevin_step(x, score, draw, 2 * scale * (snr * length) ** 2)
        mean, std = predict(x, denoise(x, sigma), sigma, lower)
        x = mean + std * noise() if lower > 0 else mean
    return mean


def langevin_step(x: Tensor, score: Tensor, noise: Tensor, step: Tensor) -> Tensor:
    """x + step score + sqrt(2 step) noise; ``step`` is () or (B,)."""
    return x + over(step, x) * score + over((2 * step).sqrt(), x) * noise


@torch.no_grad()
def annealed_langevin(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    corrections: int = 5,
    step: float | None = None,
) -> Tensor:
    """Langevin steps alone, at ever lower levels (arXiv:1907.05600, Algorithm 1).

    Args:
        denoise, x, sigmas, noise: as in `predictor_corrector`. If sigmas ends with 0, the last
            state is denoised once; else it is returned as it is.
        corrections: steps at each level.
        step: of the lowest level above 0, by default `PUBLISHED_STEP` times its square; it grows
            with sigma squared.

    Returns:
        x at sigmas[-1].
    """
    levels = [sigma for sigma, _ in walk(sigmas)]
    ends_at_zero = bool(sigmas[-1] == 0)
    if not ends_at_zero:
        levels.append(sigmas[-1].cpu())
    lowest = PUBLISHED_STEP * float(levels[-1]) ** 2 if step is None else step
    for sigma in levels:
        length = lowest * (sigma / levels[-1]) ** 2
        for _ in range(corrections):
            score = (denoise(x, sigma) - x) / float(sigma) ** 2
            x = langevin_step(x, score, noise(), length)
    return denoise(x, levels[-1]) if ends_at_zero else x


def _length(score: Tensor, noise: Tensor, sigma: Tensor, measure: Measure) -> Tensor:
    """Ratio of the norms of noise and score: about sigma where x has the noise it should have."""
    if measure == "level":
        return sigma
    of_noise, of_score = _norms(noise), _norms(score)
    return of_noise.mean() / of_score.mean() if measure == "batch" else of_noise / of_score


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms
