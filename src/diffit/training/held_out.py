"""The loss on images that training does not see, with draws that are the same for every network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffit import draws
from diffit.data import Dataset
from diffit.diffusion.loss import denoising_loss
from diffit.model import Model
from diffit.training.folder import write_whole

FILE = "held_out.jsonl"
LEVELS = 8
"""Noise levels at which the loss is taken: the midpoints of as many parts of the training law."""
MOST = 500
"""Images of the set that are used; an even choice where there are more."""
BATCH = 64


@torch.no_grad()
def held_out_loss(model: Model, dataset: Dataset) -> list[float]:
    """Mean square error of the network's prediction at each of `LEVELS` noise levels.

    Unweighted, of the whole image at the finest resolution with nothing hidden: whatever a network
    is trained by, this is what it is compared by.
    """
    step = max(1, -(-len(dataset) // MOST))
    chosen = range(0, len(dataset), step)
    places = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    sums = torch.zeros(LEVELS, dtype=torch.float64)
    for first in range(0, len(chosen), BATCH):
        numbers = list(chosen[first : first + BATCH])
        clean, label = _examples(dataset, numbers, model)
        noise = draws.normal(0, numbers, "held-out", model.shape).to(model.device)
        for level, sigma in enumerate(model.formulation.training_sigma(places)):
            loss = denoising_loss(model.denoiser, clean, noise, sigma.expand(len(numbers)), label)
            sums[level] += loss.mse.double().sum().cpu()
    return [float(total) / len(chosen) for total in sums]


def note_held_out(run: Path, images: int, losses: list[float]) -> None:
    """Add a line to the run; what a resumed run had noted beyond this point is dropped."""
    before = [line for line in read_held_out(run) if line["images"] < images]
    line = {"images": images, "loss": sum(losses) / len(losses), "loss_by_level": losses}
    write_whole(run / FILE, "".join(json.dumps(each) + "\n" for each in [*before, line]))


def read_held_out(run: Path) -> list[dict[str, Any]]:
    """The lines that were noted, in order."""
    path = run / FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _examples(dataset: Dataset, numbers: list[int], model: Model) -> tuple[Tensor, Tensor | None]:
    """(B, C, H, W) images in the space of the denoiser, and (B,) labels if there are classes."""
    examples = [dataset[i] for i in numbers]
    images = torch.stack([torch.from_numpy(np.ascontiguousarray(e.image)) for e in examples])
    clean = model.codec.encode(images.to(model.device))
    if not model.classes:
        return clean, None
    none = model.classes
    label = torch.tensor([none if e.label is None else e.label for e in examples])
    return clean, label.to(model.device)
