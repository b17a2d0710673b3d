"""Whether classifier, denoiser, noise and images go together; what smoothing takes of a model."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from diffit.codecs.pixels import Pixels
from diffit.diffusion.denoiser import Denoise
from diffit.diffusion.schedule import levels
from diffit.errors import UsageError
from diffit.explain.classifier import Classifier, describe
from diffit.explain.smoothing import Path, Smoothing
from diffit.explain.units import from_pm1
from diffit.generation import refuse_restoring
from diffit.model import Model
from diffit.samplers import find_sampler


def smoothing_of(
    model: Model | None,
    sigma: float,
    *,
    steps: int = 1,
    sampler: str = "heun",
    oversmooth: float = 1.0,
    seed: int = 0,
    unit: int = 64,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Smoothing:
    """Smoothing by a model's denoiser; UsageError if it cannot.

    Args:
        model: of pixels; None for noise alone.
        sigma: standard deviation of the noise, for pixels in [-1, 1].
        steps: above 1, a walk down from sigma in place of one estimate.
        sampler: of that walk.
        oversmooth: the denoiser is told this multiple of sigma.
        seed, unit, precision: as for `Smoothing`.
    """
    plain = Smoothing(sigma, seed=seed, unit=unit, precision=precision, oversmooth=oversmooth)
    if model is None:
        if steps > 1:
            raise UsageError(f"{steps} steps need a denoiser; name one, or leave the steps out")
        return plain
    told = oversmooth * sigma
    check_sigma(model, told)
    path = path_of(model, told, steps, sampler) if steps > 1 else None
    return replace(plain, denoise=denoise_of(model), path=path)


def denoise_of(model: Model) -> Denoise:
    """The denoiser of a model of pixels, told of no class.

    UsageError for a model of latents, for one that restores, and for one that knows no images
    without their class.
    """
    refuse_restoring(model)
    _check_pixels(model)
    if model.classes and not getattr(model.config.network, "null_class", True):
        raise UsageError(
            "this denoiser must be told the class of every image, which smoothing must not know; "
            "use one that was trained without classes, or with `train.label_dropout`"
        )

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        clean: Tensor = model.denoiser(x, sigma)
        return clean

    return denoise


def path_of(model: Model, sigma: float, steps: int, sampler: str = "heun") -> Path:
    """A walk in ``steps`` from a noise level down to 0, evenly spaced as Karras et al. do.

    Args:
        model: the denoiser's.
        sigma: level of the start, for pixels in [-1, 1].
        steps: at least 1.
        sampler: a name of `diffit.samplers.SAMPLERS` that takes a plain denoiser.
    """
    check_sigma(model, sigma)
    if find_sampler(sampler).wants_estimate:
        raise UsageError(
            f"sampler {sampler!r} wants the variance that a network has learned, and a denoiser "
            "gives none; take 'ancestral'"
        )
    sigmas = levels("karras", steps, model.formulation, high=sigma)
    sigmas[0] = sigma  # the way there and back through a root has cost it the last digit
    return Path(sigmas, sampler)


def check_sigma(model: Model, sigma: float) -> None:
    """UsageError unless the denoiser knows the noise level, for pixels in [-1, 1]."""
    low, high = model.formulation.sigma_min, model.formulation.sigma_max
    if not low < sigma <= high:
        raise UsageError(
            f"the denoiser works from noise {low:g} to {high:g}, for pixels in [-1, 1], and was "
            f"asked for {sigma:g} (for pixels in [0, 1]: {from_pm1(sigma, '01'):g}); choose a "
            "sigma inside"
        )


def check_fit(
    classifier: Classifier, model: Model | None, image: tuple[int, int, int]
) -> str | None:
    """UsageError unless these go together.

    Args:
        classifier: what is smoothed.
        model: the denoiser's; None for smoothing without one.
        image: (C, H, W) of the images, in which radii are measured.

    Returns:
        A sentence that says who resizes what, None if all sizes agree.
    """
    name = describe(classifier)
    if image[0] != classifier.shape[0]:
        raise UsageError(
            f"{name} looks at images of {classifier.shape[0]} channels and these have "
            f"{image[0]}; convert the images, or use another classifier"
        )
    if model is not None:
        _check_pixels(model)
        if model.shape[0] != classifier.shape[0]:
            raise UsageError(
                f"the denoiser works on images of {model.shape[0]} channels and {name} looks at "
                f"{classifier.shape[0]}; use two that were made for the same images"
            )
        if model.shape != image:
            raise UsageError(
                f"the denoiser works on images of {_size(model.shape)} and these are "
                f"{_size(image)}; resize them first: noise and radii belong to that size"
            )
    if classifier.shape == image:
        return None
    what = "noisy" if model is None else "denoised"
    return (
        f"radii belong to images of {_size(image)}; {name} resizes the {what} ones to "
        f"{_size(classifier.shape)}"
    )


def _check_pixels(model: Model) -> None:
    if not isinstance(model.codec, Pixels):
        raise UsageError(
            "this denoiser works on latents, where a radius would say nothing about pixels; "
            "smoothing needs one of pixels, such as a DiffiT of image space"
        )


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} x {shape[2]}"
