"""What a batch of images becomes before the network sees it.

Every draw is a function of (seed, number of the image in the run, purpose): neither batch, nor
accumulation, nor device, nor an interruption changes it.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor

from diffit import draws
from diffit.codecs import Autoencoder
from diffit.data.augment import augment, augment_parameters
from diffit.data.loader import Batch
from diffit.model import Model
from diffit.networks import Masked
from diffit.training.degraded import apart, degraded_images


class Inputs(NamedTuple):
    """The arguments of the loss for B images.

    Attributes:
        clean: (B, C, H, W) images in the space of the denoiser.
        noise: (B, C, H, W) unit-normal draws.
        sigma: (B,) noise levels, float64 on the CPU.
        position: (B,) place of each level in the training law, uniform in (0, 1), on the CPU.
        label: (B,) int64, the number of classes where the label is dropped; None without classes.
        augment: (B, 9) label of the augmentation, None without it.
        keys: (B,) int64 dropout keys.
        number: (B,) number of each image in the run, on the CPU.
        seen: (B, N) patches shown in masked training, None without it.
        image: (B, C, H, W) degraded images in the space of the denoiser, None without a task.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    position: Tensor
    label: Tensor | None
    augment: Tensor | None
    keys: Tensor
    number: Tensor
    seen: Tensor | None
    image: Tensor | None = None

    def part(self, first: int, count: int) -> Self:
        """``count`` images from ``first`` on."""

        def rows(x: Any) -> Any:
            return x if x is None else x[first : first + count]

        return type(self)(*map(rows, self))


def draw_inputs(
    batch: Batch,
    model: Model,
    *,
    seed: int,
    label_dropout: float = 0.0,
    augmentation: float = 0.0,
) -> Inputs:
    """Draw noise, noise levels, dropped labels, augmentation and dropout keys for a batch.

    Args:
        batch: images, labels and numbers, on the CPU.
        model: says what the space, the classes and the training levels are.
        seed: the run's.
        label_dropout: share of labels replaced by "no class".
        augmentation: probability of each of the augmentations.
    """
    numbers = batch.number.tolist()
    device = model.device
    batch, degraded = apart(batch, model)
    clean, label, augmented = clean_images(batch, model, seed=seed), None, None
    image = None if degraded is None else model.codec.encode(_move(degraded, device))
    if augmentation:
        parameters = augment_parameters(seed, numbers, augmentation)
        clean, augmented = augment(clean, parameters)
        image = None if image is None else augment(image, parameters)[0]
    if model.config.task and image is None:
        image = degraded_images(batch, clean, model, seed=seed)
    if model.classes and batch.label is not None:
        dropped = draws.uniform(seed, numbers, "label") < label_dropout
        label = _move(torch.where(dropped, model.classes, batch.label), device)
    position = draws.uniform(seed, numbers, "level")
    return Inputs(
        clean=clean,
        noise=_move(draws.normal(seed, numbers, "noise", model.shape), device),
        sigma=model.formulation.training_sigma(position),
        position=position,
        label=label,
        augment=augmented,
        keys=_move(draws.integers(seed, numbers, "dropout", 1 << 62), device),
        number=batch.number,
        seen=draw_seen(model.network, seed, numbers, device),
        image=image,
    )


def draw_seen(network: Any, seed: int, numbers: list[int], device: torch.device) -> Tensor | None:
    """The patches that each image shows in masked training; None for networks without it."""
    if not getattr(network.config, "mask_ratio", 0):
        return None
    share = draws.uniform(seed, numbers, "mask-share")
    noise = draws.normal(seed, numbers, "mask", (network.config.tokens,))
    return _move(cast(Masked, network).choose_seen(share, noise), device)


def clean_images(batch: Batch, model: Model, *, seed: int) -> Tensor:
    """(B, C, H, W) images in the space of the denoiser; latents are drawn from their posteriors."""
    # As bytes to the device, and only there as numbers: a quarter of the transfer.
    images = _move(batch.image, model.device)
    if not isinstance(model.codec, Autoencoder):
        return model.codec.encode(images)
    moments = model.codec.moments(images) if images.dtype == torch.uint8 else images.float()
    channels = model.shape[0]
    mean, std = moments[:, :channels], moments[:, channels:]
    if std.shape[1]:
        mean = mean + std * _move(
            draws.normal(seed, batch.number.tolist(), "latent", mean.shape[1:]), model.device
        )
    return model.codec.to_model(mean)


def _move(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


T = TypeVar("T")


class Ahead(Iterator[T]):
    """An iterator whose next items are made by a thread while the last one is used.

    For training on an accelerator, which leaves the CPU idle; on the CPU it would fight for cores.

    Args:
        items: endless; used by the thread alone.
        depth: how many items may wait.
    """

    def __init__(self, items: Iterator[T], *, depth: int = 2) -> None:
        self.items = items
        self.depth = depth
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="inputs")
        self.waiting: deque[Future[T]] = deque()

    def __next__(self) -> T:
        while len(self.waiting) <= self.depth:
            self.waiting.append(self.pool.submit(next, self.items))
        return self.waiting.popleft().result()

    def close(self) -> None:
        """End the thread."""
        self.pool.shutdown(wait=True, cancel_futures=True)
