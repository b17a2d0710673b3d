"""From seeds to images: noise, sampler, decoder. Whatever draws images comes through here.

An image follows from its seed and its label alone. Matrix products round differently in other
shapes, though, so that equal bytes also need equally many images in every forward pass: unless a
``batch`` is asked for, `generate` computes in units of ``SamplingConfig.unit`` images.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise, Estimate, Estimator
from diffit.diffusion.guidance import guide, guide_estimate, paired, paired_estimate
from diffit.distributed import double
from diffit.errors import UsageError
from diffit.model import Model
from diffit.nn.reuse import reused_blocks
from diffit.samplers import SAMPLERS, ImageNoise
from diffit.samplers.ddpm import clipped, clipped_estimate
from diffit.sampling import OPTIONS, SamplingConfig

__all__ = ["Labels", "SamplingConfig", "Unit", "Watch", "check", "draw", "generate",
           "label_tensor", "units"]  # fmt: skip

Labels = int | Sequence[int | None] | Tensor | None

Watch = Callable[[float, Tensor], None]
"""Told of each evaluation: sigma and the estimate of the clean images, (B, C, H, W)."""

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def generate(
    model: Model,
    seeds: Sequence[int],
    *,
    labels: Labels = None,
    settings: SamplingConfig | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    reference: Model | None = None,
    batch: int | None = None,
    on_step: Watch | None = None,
) -> Tensor:
    """Draw one image for each seed.

    Args:
        model: from `load` or `build_model`.
        seeds: one integer per image.
        labels: one class for all images, or one for each; None is no class.
        settings: how to draw; by default as the model's checkpoint recommends.
        sampler, steps, guidance: replace those of ``settings``.
        reference: a smaller or less trained model to guide away from (autoguidance), in place of
            the model without its label.
        batch: images computed at once. By default units of ``settings.unit``, the last one filled
            up; only then are equal arguments sure to give equal bytes on another day.
        on_step: told of each evaluation of the denoiser.

    Returns:
        (N, C, H, W) uint8 on the CPU, in the order of ``seeds``.

    Raises:
        ValueError: labels, guidance or reference that do not fit the model.
        UsageError: noise levels that the model cannot have.
    """
    chosen = (settings or model.sampling or SamplingConfig()).changed(
        sampler=sampler, steps=steps, guidance=guidance
    )
    seeds = [int(seed) for seed in seeds]
    label = label_tensor(model, labels, len(seeds))
    check(model, chosen, reference)
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    drawn = [
        draw(
            model,
            [seeds[i] for i in unit.places],
            None if label is None else label[unit.places],
            chosen,
            reference=reference,
            on_step=on_step,
        )[: unit.kept]
        for unit in units(len(seeds), batch or chosen.unit, fill=batch is None)
    ]
    return torch.cat(drawn) if drawn else model.codec.decode(torch.zeros(0, *model.shape))


class Unit(NamedTuple):
    """Images that are computed together."""

    places: list[int]
    """Which ones; the last may stand there several times to fill up."""
    kept: int
    """How many of them to keep."""


def units(count: int, size: int, *, fill: bool = True) -> Iterator[Unit]:
    """The places 0 .. count - 1 in groups of ``size``; the last group repeats its last place."""
    for first in range(0, count, size):
        places = list(range(first, min(first + size, count)))
        kept = len(places)
        yield Unit(places + places[-1:] * (size - kept if fill else 0), kept)


def label_tensor(model: Model, labels: Labels, count: int) -> Tensor | None:
    """(count,) int64 labels, "no class" as ``model.classes``; None for a model without classes."""
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    listed = [labels] * count if labels is None or isinstance(labels, int) else list(labels)
    if len(listed) != count:
        raise ValueError(f"there are {len(listed)} labels for {count} seeds; give one for each")
    if not model.classes:
        if any(label is not None for label in listed):
            raise ValueError("this model was trained without classes; leave the labels out")
        return None
    for label in listed:
        if label is not None and not 0 <= label < model.classes:
            raise ValueError(f"label {label} is none of this model's 0 to {model.classes - 1}")
    none = model.classes
    return torch.tensor([none if x is None else x for x in listed], dtype=torch.int64)


def check(model: Model, settings: SamplingConfig, reference: Model | None = None) -> None:
    """ValueError or UsageError if this model cannot be sampled so."""
    refuse_restoring(model)
    settings.sigmas(model.formulation)
    if SAMPLERS[settings.sampler].wants_estimate and not model.formulation.learned_variance:
        raise ValueError(
            f"sampler {settings.sampler!r} needs a learned variance, which this model has not; "
            "take 'ancestral'"
        )
    if settings.clip and model.codec.factor != 1:
        raise ValueError("clip is for models of pixels; this one draws latents")
    channels = settings.guidance_channels
    if channels is not None and channels > model.shape[0]:
        raise ValueError(f"guidance_channels is {channels}; this model has {model.shape[0]}")
    if settings.guidance == 1:
        return
    if reference is None and not model.classes:
        raise ValueError(
            "guidance needs a model with classes, or a reference model to guide away from; "
            "leave it at 1"
        )
    if reference is not None and (reference.shape, reference.classes) != (
        model.shape,
        model.classes,
    ):
        raise ValueError(
            f"the reference draws {reference.shape} with {reference.classes} classes, "
            f"the model {model.shape} with {model.classes}; they must agree"
        )


def refuse_restoring(model: Model) -> None:
    """UsageError for a model that needs a degraded image, where nobody gives one."""
    if model.config.task:
        raise UsageError(
            f"this model was trained to restore images ({model.config.task}), not to make some; "
            "use `diffit restore`"
        )


@torch.no_grad()
def draw(
    model: Model,
    seeds: Sequence[int],
    label: Tensor | None,
    settings: SamplingConfig,
    *,
    reference: Model | None = None,
    on_step: Watch | None = None,
) -> Tensor:
    """One batch of images, (B, C, H, W) uint8 on the CPU; arguments as checked by `generate`."""
    sampler = SAMPLERS[settings.sampler]
    noise = ImageNoise(seeds, model.shape, model.device, double(model.device))
    sigmas = settings.sigmas(model.formulation)
    x = model.formulation.prior_std(sigmas[0]) * noise()
    label = None if label is None else label.to(model.device)
    make = _estimator if sampler.wants_estimate else _denoise
    denoise: Any = make(model, label, settings, reference)
    if on_step is not None:
        denoise = _watched(denoise, on_step)
    with _precision(model, settings), _reuse(model, settings):
        x = sampler.run(denoise, x, sigmas, noise=noise, **settings.given(OPTIONS))
    if not settings.to_zero:
        # What the published code returns of a level above 0 is its own state, not ours.
        x = model.formulation.signal(sigmas[-1]) * x
    return model.codec.decode(x).cpu()


def _precision(model: Model, settings: SamplingConfig) -> AbstractContextManager[Any]:
    kind = AUTOCAST[settings.precision]
    return torch.autocast(model.device.type, kind, enabled=kind is not None)


def _reuse(model: Model, settings: SamplingConfig) -> AbstractContextManager[Any]:
    if settings.reuse_every == 1:
        return nullcontext()
    blocks: Any = model.network.blocks  # of the contract `Network`
    return reused_blocks(blocks(), every=settings.reuse_every, share=settings.reuse_share)


def _denoise(
    model: Model, label: Tensor | None, settings: SamplingConfig, reference: Model | None
) -> Denoise:
    """D with label, guidance and clipping inside."""
    how: Any = _guidance(model, settings)
    denoise: Denoise = _with_label(model.denoiser, label)
    if settings.guidance != 1 and reference is not None:
        other = _with_label(reference.denoiser, label)
        denoise = guide(denoise, other, **how)
    elif settings.guidance != 1 and label is not None:
        denoise = paired(model.denoiser, label, null=model.classes, **how)
    return clipped(denoise) if settings.clip else denoise


def _estimator(
    model: Model, label: Tensor | None, settings: SamplingConfig, reference: Model | None
) -> Estimator:
    """`_denoise` for a sampler that also asks for the learned variance."""
    how: Any = _guidance(model, settings)
    estimate: Estimator = _with_label(model.denoiser.estimate, label)
    if settings.guidance != 1 and reference is not None:
        other = _with_label(reference.denoiser, label)
        estimate = guide_estimate(estimate, other, **how)
    elif settings.guidance != 1 and label is not None:
        estimate = paired_estimate(model.denoiser.estimate, label, null=model.classes, **how)
    return clipped_estimate(estimate) if settings.clip else estimate


def _guidance(model: Model, settings: SamplingConfig) -> dict[str, Any]:
    return {
        "weight": settings.weight(model.formulation),
        "channels": settings.guidance_channels,
        "every": settings.guidance_every,
    }


def _with_label(function: Callable[..., Any], label: Tensor | None) -> Callable[..., Any]:
    return lambda x, sigma: function(x, sigma, label)


def _watched(denoise: Callable[..., Any], on_step: Watch) -> Callable[..., Any]:
    def watched(x: Tensor, sigma: Tensor) -> Any:
        answer = denoise(x, sigma)
        on_step(float(sigma), answer.clean if isinstance(answer, Estimate) else answer)
        return answer

    return watched
