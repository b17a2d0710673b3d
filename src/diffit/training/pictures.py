"""Pictures of a run's progress: samples beside real images, and the curve of the loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffit.codecs import Autoencoder
from diffit.data import Dataset, at_hand
from diffit.data.images import grid, write_png
from diffit.generation import generate
from diffit.model import Model
from diffit.training.folder import METRICS
from diffit.training.journal import read_metrics
from diffit.training.loop import Snapshot
from diffit.training.restored_pictures import draw_restored

SIDE = 64
"""Images smaller than this are drawn larger, so that their pixels can be seen."""


def draw_pictures(snapshot: Snapshot) -> None:
    """Write `samples.png`, `real.png`, both as `beside.png`, and the curve of the run so far.

    Sample i has seed i and label i modulo the number of classes; the real image beside it has the
    same label. A run that learns to restore has `restored.png`, and PSNR in `restored.json`.
    """
    count = snapshot.config.train.snapshot_images
    classes = snapshot.model.classes
    labels = [i % classes for i in range(count)] if classes else None
    if snapshot.config.task.given:
        examples = real_images(snapshot.dataset, count, labels)
        scale = max(1, SIDE // examples.shape[-1])
        draw_restored(snapshot, examples, labels, scale=scale)
        draw_curve(read_metrics(snapshot.run / METRICS), snapshot.run / "loss.png")
        return
    samples = generate(snapshot.model, range(count), labels=labels)
    columns = classes if 4 <= classes <= 16 else None
    scale = max(1, SIDE // samples.shape[-1])
    drawn = grid(samples, columns=columns, scale=scale)
    found = as_pixels(real_images(snapshot.dataset, count, labels), snapshot.model)
    real = grid(found, columns=columns, scale=scale)
    gap = np.full((drawn.shape[0], drawn.shape[1], 6 * scale), 255, np.uint8)
    snapshot.folder.mkdir(parents=True, exist_ok=True)
    write_png(snapshot.folder / "samples.png", drawn)
    write_png(snapshot.folder / "real.png", real)
    write_png(snapshot.folder / "beside.png", np.concatenate([real, gap, drawn], axis=2))
    draw_curve(read_metrics(snapshot.run / METRICS), snapshot.run / "loss.png")


def real_images(dataset: Dataset, count: int, labels: Sequence[int] | None) -> torch.Tensor:
    """(N, ...) examples of a set, with the given labels as far as a short search finds them."""
    near = at_hand(dataset)
    order = np.random.default_rng(0).permutation(len(near))[: 20 * count]
    wanted = list(labels or [0] * count)
    found: list[np.ndarray | None] = [None] * count
    spare: list[np.ndarray] = []
    for i in order:
        image, label = dataset[near[i]]
        place = _first_free(found, wanted, label if labels else 0)
        if place is None:
            spare.append(image)
        else:
            found[place] = image
        if all(x is not None for x in found):
            break
    rest = iter(spare or [image])
    filled = [next(rest, spare[0] if spare else image) if x is None else x for x in found]
    return torch.from_numpy(np.stack(filled))


def as_pixels(examples: torch.Tensor, model: Model) -> torch.Tensor:
    """(N, C, H, W) uint8: images as they are, latents decoded from their means."""
    if examples.dtype == torch.uint8 or not isinstance(model.codec, Autoencoder):
        return examples
    latents = examples[:, : model.shape[0]].float().to(model.device)
    return model.codec.decode(model.codec.to_model(latents)).cpu()


def _first_free(
    found: Sequence[np.ndarray | None], wanted: Sequence[int], label: int | None
) -> int | None:
    free = (i for i, image in enumerate(found) if image is None and wanted[i] == label)
    return next(free, None)


def draw_curve(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """The loss over images, and of the last line by noise level, as a PNG file."""
    from matplotlib.figure import Figure

    lines = [line for line in metrics if line["loss"] is not None]
    if not lines:
        return
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    over_time, by_level = figure.subplots(1, 2, width_ratios=[2, 1])
    images, losses = zip(*((line["images"], line["loss"]) for line in lines), strict=True)
    over_time.plot(images, losses, color="0.75", label="each line")
    over_time.plot(images, smooth(losses), color="C0", label="smoothed")
    over_time.set(xlabel="images", ylabel="loss")
    over_time.legend(frameon=False)
    levels = [np.nan if x is None else x for x in lines[-1].get("loss_by_level", ())]
    by_level.bar(range(1, len(levels) + 1), levels, color="C0")
    by_level.set(xlabel="noise level, low to high", ylabel="loss, last line")
    for panel in (over_time, by_level):
        panel.spines[["top", "right"]].set_visible(False)
    partial = path.with_name(f".{path.name}.part.png")
    figure.savefig(partial, dpi=120)
    partial.replace(path)


def smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """A running mean over about ``share`` of the values, free of a bias at the start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed
