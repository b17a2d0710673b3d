"""The degraded images of a training batch: those that came with it, or made of the clean ones."""

import torch
from torch import Tensor

from diffit import draws
from diffit.codecs import Autoencoder, Pixels
from diffit.data.loader import Batch
from diffit.model import Model
from diffit.restoration.supervised import PAIRS, encode_pixels
from diffit.restoration.tasks import find_task


def apart(batch: Batch, model: Model) -> tuple[Batch, Tensor | None]:
    """A batch of clean images, and the (B, C, H, W) uint8 degraded ones that came with them."""
    if model.config.task != PAIRS:
        return batch, None
    clean, degraded = batch.image.chunk(2, dim=1)
    return batch._replace(image=clean), degraded


def degraded_pixels(batch: Batch, model: Model, *, seed: int) -> Tensor:
    """(B, C, H, W) degraded images in [-1, 1] of a batch that is not augmented, on the CPU."""
    batch, degraded = apart(batch, model)
    if degraded is not None:
        return Pixels().encode(degraded)
    return _degrade(Pixels().encode(batch.image), batch.number, model, seed)


def degraded_images(batch: Batch, clean: Tensor, model: Model, *, seed: int) -> Tensor:
    """What the task of a model makes of its clean images, (B, C, H, W) in the denoiser's space.

    Args:
        batch: its images are taken where the denoiser works on latents.
        clean: (B, C, H, W) in the denoiser's space.
        seed: image n is degraded by draws that follow from (seed, n) alone.
    """
    latent = isinstance(model.codec, Autoencoder)
    pixels = Pixels().encode(batch.image) if latent else clean.cpu()
    degraded = _degrade(pixels, batch.number, model, seed)
    return encode_pixels(model.codec, degraded.to(clean.device))


def _degrade(pixels: Tensor, numbers: Tensor, model: Model, seed: int) -> Tensor:
    task = find_task(model.config.task)
    rows = [
        task.degrade(row, draws.generator(seed, n, "degrade"))
        for row, n in zip(pixels, numbers.tolist(), strict=True)
    ]
    return torch.stack(rows)
