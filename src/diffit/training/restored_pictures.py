"""Pictures of a run that learns to restore: degraded, restored and clean images."""

import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffit.codecs import Pixels
from diffit.data.images import grid, write_png
from diffit.data.loader import Batch
from diffit.distributed import double
from diffit.generation import units
from diffit.restoration.supervised import restore_supervised
from diffit.samplers import ImageNoise
from diffit.training.degraded import apart, degraded_pixels
from diffit.training.folder import write_whole
from diffit.training.loop import Snapshot

FIGURES = "restored.json"
COLUMNS = 8


def draw_restored(
    snapshot: Snapshot, examples: Tensor, labels: Sequence[int] | None, *, scale: int
) -> None:
    """Write degraded, restored and clean images side by side as `restored.png`, and their PSNR.

    Args:
        snapshot: of a run with a task.
        examples: (N, ...) of its data set.
        labels: of the examples, None without classes.
        scale: how many pixels a side of a pixel is drawn with.
    """
    model, count = snapshot.model, len(examples)
    batch = Batch(examples, None, torch.arange(count))
    degraded = degraded_pixels(batch, model, seed=0)
    clean = Pixels().encode(apart(batch, model)[0].image)
    restored = torch.cat(
        [
            _restore(snapshot, degraded[unit.places], unit.places, labels)[: unit.kept]
            for unit in units(count, snapshot.config.sampling.unit)
        ]
    )
    snapshot.folder.mkdir(parents=True, exist_ok=True)
    rows = [
        grid(Pixels().decode(images), columns=min(COLUMNS, count), scale=scale)
        for images in (degraded, restored, clean)
    ]
    gap = np.full((rows[0].shape[0], rows[0].shape[1], 6 * scale), 255, np.uint8)
    beside = np.concatenate([rows[0], gap, rows[1], gap, rows[2]], axis=2)
    write_png(snapshot.folder / "restored.png", beside)
    figures = {
        "images": count,
        "psnr_degraded": psnr(degraded, clean),
        "psnr_restored": psnr(restored, clean),
    }
    write_whole(snapshot.folder / FIGURES, json.dumps(figures) + "\n")


def psnr(images: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over (B, C, H, W) images in [-1, 1]."""
    error = (images - clean).double().square().flatten(1).mean(1).clamp(min=1e-10)
    return float((10 * torch.log10(4 / error)).mean())


def _restore(
    snapshot: Snapshot, degraded: Tensor, places: Sequence[int], labels: Sequence[int] | None
) -> Tensor:
    model, sampling = snapshot.model, snapshot.config.sampling
    label = None if labels is None else torch.tensor([labels[i] for i in places])
    return restore_supervised(
        model.denoiser,
        model.codec,
        model.config,
        degraded.to(model.device),
        noise=ImageNoise(places, model.shape, model.device, double(model.device)),
        steps=sampling.steps,
        sampler=sampling.sampler,
        label=None if label is None else label.to(model.device),
    ).x.cpu()
