"""What a classifier is trained on: images in [-1, 1], moved, noisy, perhaps denoised, and labels.

Every draw is a function of (seed, number of the image in the run, purpose).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffit import draws
from diffit.checkpoint import load
from diffit.codecs import PixelsConfig
from diffit.data import Dataset, Example, open_images
from diffit.data.builtin import PREFIX
from diffit.data.loader import Batch
from diffit.diffusion.denoiser import Denoise
from diffit.errors import ConfigError, DataError
from diffit.explain.classifier_folder import is_classifier
from diffit.explain.fitting import denoise_of
from diffit.training.classifier_settings import ClassifierRun, ClassifierTrain

EACH = 10
"""Every such image is held out of a set that has no held-out part of its own."""
BLACK = -1.0


class Part:
    """Some examples of a set, as a set."""

    def __init__(self, whole: Dataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, indices
        self.classes, self.shape = whole.classes, whole.shape

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Example:
        return self.whole[self.indices[i]]

    def label(self, i: int) -> int | None:
        """The label of example i, without reading its image."""
        return self.whole.label(self.indices[i])


def open_sets(run: ClassifierRun) -> tuple[Dataset, Dataset]:
    """The images to learn from, and those held out; DataError if they cannot be classified."""
    whole = _open(run, run.data.path)
    if run.held_out or run.data.path.startswith(PREFIX):
        path = run.held_out or f"{run.data.path.removesuffix('-test')}-test"
        if path == run.data.path:
            raise DataError(
                f"{path} would measure what it has trained; name other images with data.path"
            )
        held_out = _open(run, path)
        if (held_out.classes, held_out.shape) != (whole.classes, whole.shape):
            raise DataError(
                f"{path} has images {held_out.shape} of {len(held_out.classes)} classes, "
                f"but {run.data.path} {whole.shape} of {len(whole.classes)}, or other names: both "
                "must agree"
            )
        return whole, held_out
    if len(whole) < EACH:
        raise DataError(
            f"{run.data.path} has {len(whole)} images; of so few none can be held out: name others "
            "with held_out"
        )
    rest = [i for i in range(len(whole)) if i % EACH]
    return Part(whole, rest), Part(whole, range(0, len(whole), EACH))


def _open(run: ClassifierRun, path: str) -> Dataset:
    data = run.data
    if not data.labels or data.augment:
        raise ConfigError(
            "a classifier needs data.labels, and data.augment is for denoisers: it is moved by "
            "train.shift and data.flip"
        )
    dataset = open_images(path, size=data.size, channels=data.channels, background=data.background)
    if len(dataset.classes) < 2:
        raise DataError(
            f"{path} has {len(dataset.classes)} classes; a classifier needs two at least: a "
            "sub-folder of images for each"
        )
    if dataset.shape[1] != dataset.shape[2]:
        raise DataError(f"images of {path} are not square; set data.size to crop and resize them")
    return dataset


def open_denoiser(
    path: str, shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Denoise | None:
    """The denoiser that images pass through, None for none.

    ConfigError if it takes others, UsageError if it must be told their class.
    """
    if not path:
        return None
    if is_classifier(Path(path)):
        raise ConfigError(f"train.denoiser {path} is a classifier; name a model of images")
    model = load(path, device=device)
    if not isinstance(model.config.codec, PixelsConfig) or model.shape != shape:
        raise ConfigError(
            f"train.denoiser {path} works on {model.shape} "
            f"{'pixels' if isinstance(model.config.codec, PixelsConfig) else 'latents'}, but the "
            f"images are {shape}; train one on these images"
        )
    model.denoiser.eval().requires_grad_(False)
    return denoise_of(model)


def draw_images(
    batch: Batch, train: ClassifierTrain, *, denoise: Denoise | None, device: torch.device
) -> Tensor:
    """(B, C, H, W) images in [-1, 1] as a training step sees them."""
    numbers = batch.number.tolist()
    images = batch.image.to(device).float() / 127.5 - 1
    if train.shift:
        images = shifted(images, _draw_shifts(train, numbers))
    if not train.noise:
        return images
    chosen = (draws.uniform(train.seed, numbers, "classifier/noisy") < train.noise_share).nonzero()
    if not len(chosen):
        return images
    rows = chosen[:, 0]
    some = [numbers[i] for i in rows.tolist()]
    sigma = train.noise * draws.uniform(train.seed, some, "classifier/level")
    noise = draws.normal(train.seed, some, "classifier/noise", images.shape[1:])
    rows, noise = rows.to(device), noise.to(device)
    noisy = images[rows] + sigma.to(images)[:, None, None, None] * noise
    if denoise is not None:
        with torch.no_grad():
            noisy = denoise(noisy, sigma).clamp(-1, 1)
    return images.index_copy(0, rows, noisy)


def _draw_shifts(train: ClassifierTrain, numbers: list[int]) -> Tensor:
    side = 2 * train.shift + 1
    places = draws.integers(train.seed, numbers, "classifier/shift", side * side)
    return torch.stack([places // side, places % side], 1) - train.shift


def shifted(images: Tensor, by: Tensor) -> Tensor:
    """(B, C, H, W) images moved by (B, 2) pixels down and to the right; black comes in."""
    height, width = images.shape[2:]
    y = torch.arange(height) - by[:, :1]
    x = torch.arange(width) - by[:, 1:]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    places = (y.clamp(0, height - 1) * width)[:, :, None] + x.clamp(0, width - 1)[:, None, :]
    flat = places.flatten(1).to(images.device)[:, None].expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, flat).view_as(images)
    return moved.masked_fill(~inside.to(images.device)[:, None], BLACK)


def batches(dataset: Dataset, size: int = 250, most: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in [-1, 1] and labels of a set in order; of ``most``, an even choice, if not 0."""
    step = max(1, -(-len(dataset) // most)) if most else 1
    chosen = range(0, len(dataset), step)
    for first in range(0, len(chosen), size):
        examples = [dataset[i] for i in chosen[first : first + size]]
        images = torch.from_numpy(np.stack([np.ascontiguousarray(e.image) for e in examples]))
        yield images.float() / 127.5 - 1, torch.tensor([e.label for e in examples])


@torch.no_grad()
def accuracy(vit: nn.Module, dataset: Dataset, *, most: int = 0) -> float:
    """Share of a set's images, or of an even choice of ``most``, whose largest logit is right."""
    device = next(vit.parameters()).device
    right = count = 0
    for images, labels in batches(dataset, most=most):
        right += int((vit(images.to(device)).argmax(1).cpu() == labels).sum())
        count += len(labels)
    return right / count
