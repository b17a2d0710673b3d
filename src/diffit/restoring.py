"""From a measurement to images: where a model, an operator, a method and seeds meet."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffit.config import nearest
from diffit.diffusion.denoiser import Denoise
from diffit.diffusion.guidance import constant, guide
from diffit.diffusion.schedule import levels
from diffit.distributed import double
from diffit.errors import UsageError
from diffit.model import Model
from diffit.restoration import METHODS, Method, Restoration, check_fits
from diffit.restoration.operators import Operator, check_measurement
from diffit.restoration.supervised import restore_supervised
from diffit.restoration.task import Task
from diffit.restoration.tiles import tiled
from diffit.samplers import ImageNoise

Watch = Callable[[float, Tensor], None]
"""Told of each evaluation: sigma and the estimate of the clean images, (B, C, H, W)."""


def restore(
    model: Model,
    y: Tensor,
    operator: Operator,
    seeds: Sequence[int],
    *,
    method: str = "ddnm",
    options: Mapping[str, Any] | None = None,
    steps: int | None = None,
    sigma_y: float = 0.0,
    label: int | None = None,
    guidance: float = 1.0,
    overlap: int | None = None,
    batch: int = 64,
    on_step: Watch | None = None,
) -> Restoration:
    """Draw images that explain a measurement and that the model finds likely.

    Args:
        model: of pixels or of latents.
        y: (B, *measured), one measurement for each seed.
        operator: what was measured, for images of the model's size or, with tiles, larger ones.
        seeds: one for each measurement; all that is random about a result follows from its own.
        method: key of `METHODS`.
        options: of the method, by name; the others have their defaults.
        steps: noise levels; by default as many as the method was published with.
        sigma_y: standard deviation of the noise in y, in units of pixels in [-1, 1].
        label: class of the images, for a model with classes.
        guidance: weight of the class; 1 is no guidance.
        overlap: pixels that tiles of a larger image share; by default a quarter of the model's.
        batch: tiles that are computed at once.
        on_step: told of each evaluation of the whole images.

    Returns:
        A `Restoration`; its x is (B, C, H, W) pixels, about [-1, 1].

    Raises:
        UsageError: methods, options, labels, operators or measurements that do not fit.
    """
    row = find_method(method)
    check_fits(method, operator, latent=is_latent(model), sigma_y=sigma_y)
    check_measurement(y, operator)
    dtype = double(model.device)
    shape = model.shape if is_latent(model) else operator.shape
    denoise = conditioned(model, label, guidance)
    denoise = over_tiles(denoise, model, shape, overlap=overlap, batch=batch)
    noise = ImageNoise(seeds, shape, model.device, dtype)
    sigmas = levels_of(model, method, steps)
    given = {**row.options, **(options or {})}
    if is_latent(model):
        codec: Any = model.codec
        given["decode"] = codec.pixels
    watched = denoise if on_step is None else _watched(denoise, on_step)
    with torch.set_grad_enabled("gradient" in row.needs):
        return row.run(
            watched,
            y.to(model.device, dtype),
            operator,
            sigmas,
            noise=noise,
            sigma_y=sigma_y,
            **given,
        )


def restore_trained(
    model: Model,
    degraded: Tensor,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    label: int | None = None,
) -> Restoration:
    """Restore (B, C, H, W) images in [-1, 1] by a model that was trained for their task.

    By the sampler, and unless told in as many steps, as its checkpoint recommends.
    """
    usual = model.sampling
    dtype = double(model.device)
    labels = None if label is None else torch.full((len(degraded),), label, device=model.device)
    return restore_supervised(
        model.denoiser,
        model.codec,
        model.config,
        degraded.to(model.device, dtype),
        noise=ImageNoise(seeds, model.shape, model.device, dtype),
        steps=steps or (usual and usual.steps),
        sampler=usual and usual.sampler,
        label=labels,
    )


def find_method(name: str) -> Method:
    """The method called ``name``; UsageError with the nearest name if there is none."""
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}; {nearest(name, list(METHODS))}")
    return METHODS[name]


def levels_of(model: Model, method: str, steps: int | None = None) -> Tensor:
    """The noise levels that a method goes down, (steps + 1,) with 0 at the end."""
    row = find_method(method)
    kind = row.levels or model.formulation.natural
    return levels(kind, steps or row.steps, model.formulation)


def read_options(method: str, text: str) -> dict[str, Any]:
    """`eta=0.5,repeats=2` as options of a method, each of the kind that its default has."""
    known, given = find_method(method).options, {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        name = name.strip()
        if name not in known:
            raise UsageError(f"method {method!r} has no option {name!r}; {_known(name, known)}")
        given[name] = _value(method, name, value.strip(), known[name])
    return given


def is_latent(model: Model) -> bool:
    """Whether a model draws latents, which an autoencoder makes pixels of."""
    return model.codec.factor != 1


def factor_of(task: Task) -> int:
    """How many times as long as those of a measurement the sides of the image are."""
    found = re.match(r"sr(\d+)", task.name)
    return int(found[1]) if found else 1


def baseline(task: Task, operator: Operator, y: Tensor) -> Tensor:
    """(B, C, H, W) without any model: bicubic for super-resolution, else A+ y, else the picture."""
    invert = getattr(operator, "pinv", None)  # some that are not linear have a rough one
    if factor_of(task) > 1 or invert is None:
        return task.picture(operator, y)
    naive: Tensor = invert(y).clamp(-1, 1)
    return naive


def conditioned(model: Model, label: int | None, guidance: float = 1.0) -> Denoise:
    """D for batches of any size, label and guidance inside."""
    if label is None or not model.classes:
        if label is not None:
            raise UsageError("this model was trained without classes; leave the label out")
        if guidance != 1:
            raise UsageError("guidance needs a class: give a label, or leave guidance at 1")
        return _labelled(model, model.classes or None)
    if not 0 <= label < model.classes:
        raise UsageError(f"label {label} is none of this model's 0 to {model.classes - 1}")
    main = _labelled(model, label)
    if guidance == 1:
        return main
    return guide(main, _labelled(model, model.classes), weight=constant(guidance))


def over_tiles(
    denoise: Denoise,
    model: Model,
    shape: Sequence[int],
    *,
    overlap: int | None = None,
    batch: int = 64,
) -> Denoise:
    """D for images of ``shape``: as it is for those of the model's size, by tiles for larger."""
    channels, height, width = model.shape
    if shape[0] != channels:
        raise UsageError(f"the images have {shape[0]} channels, this model draws {channels}")
    if tuple(shape[1:]) == (height, width):
        return denoise
    return tiled(denoise, (height, width), overlap=tile_overlap(model, overlap), batch=batch)


def tile_overlap(model: Model, overlap: int | None) -> int:
    """The overlap that is asked for, or a quarter of a tile."""
    return min(model.shape[1:]) // 4 if overlap is None else overlap


def _known(name: str, known: Mapping[str, Any]) -> str:
    return nearest(name, list(known)) if known else "it has none"


def _value(method: str, name: str, text: str, default: Any) -> Any:
    """A text as the kind of value that the default is."""
    words = {"true": True, "yes": True, "false": False, "no": False, "none": None}
    if isinstance(default, bool) or text.lower() == "none":
        if text.lower() not in words:
            raise UsageError(f"{name} of method {method} is {text!r}; it must be true or false")
        return words[text.lower()]
    if isinstance(default, str):
        return text
    kind = int if isinstance(default, int) else float
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} of method {method} is {text!r}; it must be {what}") from None
    if not math.isfinite(value):
        raise UsageError(f"{name} of method {method} is {text}; it must be finite")
    return value


def _labelled(model: Model, label: int | None) -> Denoise:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        labels = None if label is None else torch.full((len(x),), label, device=x.device)
        clean: Tensor = model.denoiser(x, sigma, labels)
        return clean

    return denoise


def _watched(denoise: Denoise, on_step: Watch) -> Denoise:
    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        clean = denoise(x, sigma)
        on_step(float(sigma.max()), clean.detach())
        return clean

    return watched
