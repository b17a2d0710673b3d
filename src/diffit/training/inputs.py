"""What a batch of images becomes before the network sees it.

Every draw is a function of (seed, number of the image in the run, purpose): neither batch, nor
accumulation, nor device, nor an interruption changes it.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from diffit import draws
from diffit.data.augment import augment, augment_parameters
from diffit.data.loader import Batch
from diffit.model import Model


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
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    position: Tensor
    label: Tensor | None
    augment: Tensor | None
    keys: Tensor
    number: Tensor

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
    clean, label = model.codec.encode(batch.image), None
    augmented = None
    if augmentation:
        parameters = augment_parameters(seed, numbers, augmentation)
        clean, augmented = augment(clean, parameters)
    if model.classes and batch.label is not None:
        dropped = draws.uniform(seed, numbers, "label") < label_dropout
        label = torch.where(dropped, model.classes, batch.label)
    position = draws.uniform(seed, numbers, "level")
    inputs = Inputs(
        clean=clean,
        noise=draws.normal(seed, numbers, "noise", model.shape),
        sigma=model.formulation.training_sigma(position),
        position=position,
        label=label,
        augment=augmented,
        keys=draws.integers(seed, numbers, "dropout", 1 << 62),
        number=batch.number,
    )
    return _to(inputs, model.device)


def _to(inputs: Inputs, device: torch.device) -> Inputs:
    """Move what the network sees; levels and numbers stay, since looking at them costs no wait."""
    if device.type == "cpu":
        return inputs

    def move(x: Any) -> Any:
        return x if x is None else x.pin_memory().to(device, non_blocking=True)

    seen = ("clean", "noise", "label", "augment", "keys")
    return inputs._replace(**{name: move(getattr(inputs, name)) for name in seen})
