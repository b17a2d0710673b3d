"""What the verbs of `diffit explain` share: classifier, denoiser, noise; how they are opened."""

import contextlib
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from diffit.checkpoint import load
from diffit.config import Settings
from diffit.distributed import pick_device
from diffit.errors import UsageError
from diffit.explain.attribution import get_method, token_maps
from diffit.explain.classifier import Classifier, is_attentive
from diffit.explain.classifier_folder import is_classifier
from diffit.explain.fitting import check_fit, check_sigma, denoise_of, path_of
from diffit.explain.opening import open_classifier
from diffit.explain.processes import in_processes
from diffit.explain.smoothed import Run
from diffit.explain.smoothing import Explain, Smoothed, Smoothing
from diffit.explain.units import Units, in_both, to_pm1
from diffit.model import Model
from diffit.samples import versions, weights_of

PIXELS: dict[Units, str] = {"01": "pixels in [0, 1]", "pm1": "pixels in [-1, 1]"}


class Parts(Settings):
    """Whose predictions are smoothed, who denoises, and how it is computed."""

    classifier: str
    """A folder of `diffit explain train-classifier`, a ViT, DeiT or DINOv2 of transformers (folder
    or hub id), or a CIFAR ResNet (.th)."""
    denoiser: str = ""
    """A checkpoint, run or hub id of a model of pixels; by default the classifier is shown the
    noisy images as they are."""
    size: int | None = Field(default=None, ge=1, le=4096)
    """Crop the middle square of images and resize it to this side: the denoiser's."""
    steps: PositiveInt = Field(default=1, le=10_000)
    """Evaluations on the way from the noisy image to the clean one; 1 is the usual for labels."""
    sampler: str = "heun"
    """What walks that way, where it has several steps."""
    seed: int = 0
    """All noise follows from it and from the number of the image."""
    unit: PositiveInt = Field(default=64, le=65_536)
    """Noisy copies that are computed at once; results of different units differ by rounding."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 compute matrix products in that precision."""
    grid: PositiveInt = Field(default=8, le=1024)
    """Cells a side into which relevance of pixels is summed, for classifiers without tokens."""
    processes: PositiveInt = Field(default=1, le=1024)
    """Compute in so many processes of one thread each, on a CPU."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


class Noise(Settings):
    """The noise of smoothing, in the units that are stated with it."""

    sigma: PositiveFloat
    """Standard deviation of the noise."""
    units: Units
    """What sigma and printed radii are measured in: 01 for pixels in [0, 1], as in the literature,
    pm1 for pixels in [-1, 1], where they are twice as large."""

    @property
    def level(self) -> float:
        """sigma for pixels in [-1, 1]."""
        return to_pm1(self.sigma, self.units)

    def stated(self) -> dict[str, Any]:
        """As results state it."""
        return {"sigma": in_both(self.level), "units": self.units}


class Opened(NamedTuple):
    """A classifier and perhaps a denoiser, read and found to go together."""

    classifier: Classifier
    model: Model | None
    device: torch.device

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.classifier.shape[0]

    def identity(self) -> dict[str, Any]:
        """Which weights these are."""
        return {
            "classifier": {
                "name": getattr(self.classifier, "name", ""),
                "hash": digest(self.classifier),
            },
            "denoiser": None if self.model is None else weights_of(self.model).model_dump(),
            "versions": versions(),
        }


def open_parts(parts: Parts) -> Opened:
    """Read classifier and denoiser."""
    device = pick_device(parts.device)
    if parts.processes > 1 and device.type != "cpu":
        raise UsageError("--processes share a CPU; add --device cpu")
    if parts.steps > 1 and not parts.denoiser:
        raise UsageError("--steps are those of a denoiser; name one with --denoiser")
    classifier = open_classifier(parts.classifier)
    network = network_of(classifier)
    if network is not None:
        network.to(device)
    if parts.denoiser and is_classifier(Path(parts.denoiser)):
        raise UsageError(f"--denoiser {parts.denoiser} is a classifier; name a model of images")
    model = load(parts.denoiser, device=device) if parts.denoiser else None
    if model is not None:
        denoise_of(model)  # refuses latents, and models that must be told the class
    return Opened(classifier, model, device)


def smooth(
    opened: Opened,
    parts: Parts,
    level: float,
    *,
    method: str | None = None,
    denoised: bool = True,
    seed: int | None = None,
) -> Smoothed:
    """The classifier behind noise, ready to predict or explain.

    Args:
        opened: the parts, read.
        parts: how they are used.
        level: sigma for pixels in [-1, 1].
        method: a name of `METHODS`, for maps.
        denoised: false leaves the denoiser out.
        seed: in place of the seed of ``parts``.
    """
    denoise = path = None
    if opened.model is not None and denoised:
        check_sigma(opened.model, level)
        denoise = denoise_of(opened.model)
        if parts.steps > 1:
            path = path_of(opened.model, level, parts.steps, parts.sampler)
    smoothing = Smoothing(
        sigma=level,
        denoise=denoise,
        path=path,
        seed=parts.seed if seed is None else seed,
        unit=parts.unit,
        precision=parts.precision,
    )
    explain = None if method is None else explainer(opened.classifier, method, parts.grid)
    return Smoothed(opened.classifier, smoothing, explain, device=opened.device)


def open_smoothed(
    parts: Parts, level: float, method: str | None = None, denoised: bool = True
) -> Smoothed:
    """From the arguments alone, as another process does it."""
    return smooth(open_parts(parts), parts, level, method=method, denoised=denoised)


@contextlib.contextmanager
def running(
    parts: Parts, level: float, method: str | None = None, *, denoised: bool = True
) -> Iterator[Run | None]:
    """Where units of copies are computed: in processes while this lasts, or here (None)."""
    if parts.processes == 1:
        yield None
        return
    opener = partial(open_smoothed, parts, level, method, denoised)
    with in_processes(opener, parts.processes) as run:
        yield run


def explainer(classifier: Classifier, method: str, cells: int) -> Explain:
    """(B, C, H, W) images and (B,) classes to (B, T) relevances of tokens, none negative.

    UsageError unless there is such a method and the classifier has what it needs.
    """
    get_method(method).check(classifier)
    grid = grid_of(classifier, cells)
    if grid[0] > classifier.shape[1] or classifier.shape[1] % grid[0]:
        raise UsageError(
            f"--grid {cells} does not divide the {classifier.shape[1]} pixels that the classifier "
            "looks at"
        )

    def explain(images: Tensor, labels: Tensor) -> Tensor:
        return token_maps(method, classifier, images, labels, grid=grid)

    return explain


def grid_of(classifier: Classifier, cells: int) -> tuple[int, int]:
    """(rows, columns) of the relevances: the classifier's tokens, or cells if it has none."""
    return classifier.grid if is_attentive(classifier) else (cells, cells)


def check_images(opened: Opened, shape: tuple[int, int, int]) -> None:
    """UsageError unless images of this shape suit; says who resizes what, if anyone does."""
    model = opened.model
    channels = opened.classifier.shape[0]
    # Of channels that differ `check_fit` tells first: no --size would mend them.
    mendable = model is not None and model.shape[0] == channels and model.shape[1] == model.shape[2]
    if model is not None and mendable and model.shape[1:] != shape[1:]:
        raise UsageError(
            f"the denoiser works on images of {model.shape[1]} x {model.shape[2]} and these are "
            f"{shape[1]} x {shape[2]}; add --size {model.shape[1]}: noise and radii belong to "
            "that size"
        )
    note = check_fit(opened.classifier, model, shape)
    if note is not None:
        print(f"note: {note}")


def check_out(out: Path | None) -> None:
    """UsageError if a result could not be written to this file in the end."""
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")


def network_of(classifier: Classifier) -> nn.Module | None:
    """The network of PyTorch that a classifier is or holds; None for any other function."""
    inner = classifier if isinstance(classifier, nn.Module) else getattr(classifier, "model", None)
    return inner if isinstance(inner, nn.Module) else None


def digest(classifier: Classifier) -> str:
    """BLAKE2b of a classifier's weights, by which results tell which one it was."""
    found = hashlib.blake2b(digest_size=16)
    network = network_of(classifier)
    if network is not None:
        for name, tensor in sorted(network.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
