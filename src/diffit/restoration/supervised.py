"""Restoration by a model that was trained on pairs of clean and degraded images.

Such a model is shown the degraded image, as SR3 (arXiv:2104.07636) and Palette (arXiv:2111.05826)
have it, and in IR-SDE, ResShift and InDI it also starts from there.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffit.codecs import Autoencoder, Codec, Pixels
from diffit.diffusion.bridge import IRSDE, Bridge
from diffit.diffusion.denoiser import Denoise, Denoiser
from diffit.diffusion.formulation import Formulation
from diffit.diffusion.schedule import levels
from diffit.errors import UsageError
from diffit.restoration.method import Restoration
from diffit.samplers import find_sampler
from diffit.samplers.steps import Noise

PAIRS = "pairs"
"""What a model restores that was trained on a user's own pairs."""

IRSDE_WALKS = ("sde", "ode")
"""Samplers of IR-SDE beside those of the table: the paper's steps in x_t."""


class Walk(NamedTuple):
    """How a model restores where nothing else is said."""

    sampler: str
    steps: int


def is_supervised(config: Any) -> bool:
    """Whether a model, of this `ModelConfig`, was trained to restore images."""
    return bool(config.task)


def usual_walk(formulation: Formulation) -> Walk:
    """The sampler and steps of each method's authors; of other rows those of EDM."""
    if formulation.bridge is not None:
        return Walk("", formulation.bridge.steps or 20)
    if formulation.shift is not None and formulation.levels is not None:
        return Walk("ancestral", len(formulation.levels))
    return Walk("heun", 18)


def encode_pixels(codec: Codec, pixels: Tensor) -> Tensor:
    """(B, C, H, W) float images in [-1, 1] to the space of a model, (B, c, h, w)."""
    if not isinstance(codec, Autoencoder):
        return pixels
    return codec.encode(Pixels().decode(pixels))


@torch.no_grad()
def restore_supervised(
    denoiser: Denoiser,
    codec: Codec,
    config: Any,
    degraded: Tensor,
    *,
    noise: Noise,
    steps: int | None = None,
    sampler: str | None = None,
    label: Tensor | None = None,
) -> Restoration:
    """Restore images as a model was trained to.

    Args:
        denoiser: D(x, sigma, label, image).
        codec: of the model.
        config: its `ModelConfig`.
        degraded: (B, C, H, W) in [-1, 1], of the size of the clean image; enlarged, where the task
            is super-resolution.
        noise: the next unit-normal draw in the denoiser's space; its precision is that of the walk.
        steps: from the degraded image, or from noise, to the clean one; by default `usual_walk`'s.
        sampler: of the table of samplers; with IR-SDE also `sde` and `ode`. ResShift and InDI have
            steps of their own and take none.
        label: (B,) class, for models with classes.

    Returns:
        Clean images (B, C, H, W) in [-1, 1]. Nothing is said of their consistency, since nobody
        knows how the degraded image was measured.

    Raises:
        UsageError: an image, a sampler or a number of steps that the model cannot have.
    """
    _check_degraded(degraded, config, codec)
    formulation = denoiser.formulation
    image = encode_pixels(codec, degraded)
    usual = usual_walk(formulation)
    sampler, steps = sampler or usual.sampler, usual.steps if steps is None else steps
    evaluations = 0

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        clean: Tensor = denoiser(x, sigma, label, image)
        return clean

    if formulation.bridge is not None:
        x = _cross(formulation.bridge, denoise, image, noise, steps)
    elif sampler in IRSDE_WALKS and formulation.shift is not None:
        x = _walk_ir_sde(IRSDE.of(config.formulation), denoise, image, noise, steps, sampler)
    else:
        x = _sample(formulation, denoise, image, noise, steps, sampler)
    pixels = codec.pixels(x) if isinstance(codec, Autoencoder) else x
    return Restoration(pixels.clamp(-1, 1), evaluations, None)


def _cross(bridge: Bridge, denoise: Denoise, image: Tensor, noise: Noise, steps: int) -> Tensor:
    """From the degraded image at t = 1 to the clean one at 0."""
    try:
        times = bridge.times(steps)
    except ValueError as error:
        raise UsageError(str(error)) from None
    start = noise()
    x = bridge.start(image.to(start), start)
    for t, lower in pairwise(times):
        clean = denoise(x, t)
        fresh = noise() if lower > 0 else torch.zeros_like(x)
        x = bridge.step(x, clean, float(t), float(lower), fresh)
    return x


def _walk_ir_sde(
    process: IRSDE, denoise: Denoise, image: Tensor, noise: Noise, steps: int, sampler: str
) -> Tensor:
    """The paper's Euler steps in x_t, which need all times."""
    if steps != process.steps:
        raise UsageError(
            f"the sampler {sampler} of IR-SDE takes all {process.steps} steps, not {steps}; take "
            "ancestral for fewer"
        )
    start = noise()
    image = image.to(start)
    x = image + process.scale * start
    for t in range(process.steps, 0, -1):
        here = process.level(x, image, t)
        sigma = process.std[t] / process.share[t]
        eps = (here - denoise(here, sigma)) / float(sigma)
        if sampler == "ode":
            x = process.ode_step(x, image, eps, t)
        else:
            x = process.sde_step(x, image, eps, t, noise())
    return x


def _sample(
    formulation: Formulation,
    denoise: Denoise,
    image: Tensor,
    noise: Noise,
    steps: int,
    sampler: str,
) -> Tensor:
    """By a sampler of the table, from noise or, with IR-SDE, from the noisy degraded image."""
    chosen = find_sampler(sampler)
    if chosen.wants_estimate:
        raise UsageError(f"sampler {sampler} needs a learned variance; take ancestral")
    sigmas = levels(chosen.levels(formulation), steps, formulation)
    x = float(formulation.prior_std(sigmas[0])) * noise()
    if formulation.shift is not None:
        x = x + image.to(x)
    restored: Tensor = chosen.run(denoise, x, sigmas, noise=noise)
    return restored


def _check_degraded(degraded: Tensor, config: Any, codec: Codec) -> None:
    channels, height, width = config.network.shape
    factor = codec.factor
    wanted = (channels if codec.channels is None else 3, factor * height, factor * width)
    if degraded.ndim != 4 or tuple(degraded.shape[1:]) != wanted:
        given = " x ".join(map(str, degraded.shape[1:]))
        raise UsageError(
            f"the degraded images are {given}, but this model restores images of "
            f"{' x '.join(map(str, wanted))}"
        )
    if not degraded.isfinite().all():
        raise UsageError("the degraded image holds values that are not finite")
