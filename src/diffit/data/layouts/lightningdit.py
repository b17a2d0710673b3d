"""LightningDiT: safetensors files with `latents` and `latents_flip` (N, c, h, w), drawn and not yet
scaled, and `labels` (N,).

The `latents_stats.pt` beside them is not read, and not written: statistics are computed anew, here
as in LightningDiT, where the file is missing.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from diffit.data.example import MAX_CLASSES, Follow
from diffit.data.latents import Facts, LatentSet, checked_labels
from diffit.data.layouts.forms import take
from diffit.data.layouts.reading import FLOATS, latent_shape
from diffit.data.tensor_files import TensorFiles
from diffit.errors import DataError

PER_FILE = 10_000


class LightningDiT:
    """The safetensors files of a folder, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = TensorFiles(sorted(path.glob("*.safetensors")))
        if not self._files.paths:
            raise DataError(f"{path} holds no safetensors files")
        labels = [self._checked(k) for k in range(len(self._files.paths))]
        self._ends = np.cumsum([len(part) for part in labels])
        values = np.concatenate(labels)
        first = self._files.row(0, "latents", 0)
        if first.dtype.name not in FLOATS:
            raise DataError(f"{self._files.paths[0]} holds {first.dtype}; save it as float32")
        count = int(values.max(initial=0)) + 1
        if count > MAX_CLASSES:
            raise DataError(f"{path}: labels are 0 to {MAX_CLASSES - 1}, not {count - 1}")
        self.facts = Facts(
            images=len(values),
            shape=latent_shape(first, name=str(self._files.paths[0]), posterior=False),
            form="point", pixels="-1..1", dtype=first.dtype,
            mirrored=all("latents_flip" in self._files.names(k) for k in range(len(labels))),
            classes=tuple(map(str, range(count))),
        )  # fmt: skip
        self._labels = checked_labels(values, self.facts, path)

    def stored(self, i: int, *, mirrored: bool = False) -> np.ndarray:
        file = int(np.searchsorted(self._ends, i, side="right"))
        place = i - (int(self._ends[file - 1]) if file else 0)
        values = self._files.row(file, "latents_flip" if mirrored else "latents", place)
        if values.shape != self.facts.shape or not np.isfinite(values).all():
            raise DataError(
                f"{self._files.paths[file]}, row {place}: not finite, or not of the first's shape"
            )
        return values

    def label(self, i: int) -> int | None:
        return int(self._labels[i])

    def _checked(self, file: int) -> np.ndarray:
        path, names = self._files.paths[file], self._files.names(file)
        if not {"latents", "labels"} <= names:
            raise DataError(f"{path} has no latents and labels, but {', '.join(sorted(names))}")
        labels = self._files.whole(file, "labels")
        for name in names & {"latents", "latents_flip"}:
            shape = self._files.shape(file, name)
            if len(shape) != 4 or labels.shape != shape[:1]:
                raise DataError(f"{path}: {name} is {shape}, but labels are {labels.shape}")
        return labels


def is_lightningdit(path: Path) -> bool:
    """Whether the first safetensors file of a folder holds latents."""
    found = sorted(path.glob("*.safetensors"))
    try:
        return bool(found) and "latents" in TensorFiles(found[:1]).names(0)
    except DataError:
        return False


def write_lightningdit(latents: LatentSet, out: Path, *, scale: float, follow: Follow) -> None:
    """Files of 10,000 images, named as LightningDiT names them."""
    if not latents.facts.mirrored:
        raise DataError(
            "LightningDiT reads mirrored latents as well, which these lack; encode with --flip"
        )
    out.mkdir(parents=True)
    steps = iter(follow(range(latents.facts.images)))
    for k, first in enumerate(range(0, latents.facts.images, PER_FILE)):
        rows: list[tuple[np.ndarray, np.ndarray, int | None]] = []
        for i in range(first, min(first + PER_FILE, latents.facts.images)):
            next(steps)
            plain, flipped = (
                take(latents, i, "point", mirrored=mirrored, scale=1.0)
                for mirrored in (False, True)
            )
            rows.append((plain, flipped, latents.label(i)))
        values, flips, labels = zip(*rows, strict=True)
        arrays = {
            "latents": np.stack(values),
            "latents_flip": np.stack(flips),
            "labels": np.array(labels, dtype=np.int64),
        }
        save_file(arrays, out / f"latents_rank00_shard{k:03d}.safetensors")
    list(steps)
