"""U-ViT: `0.npy`, `1.npy`, ..., each (2c, h, w): mean and log-variance.

Its class-conditional sets hold pairs (moments, label) that numpy pickles, which are refused: a
pickle can run code. What is read and written instead are the moments alone, as its COCO features
have them, and their labels in one `labels.npy`, (N,) integers. Mirrored images follow the others as
images of their own.
"""

from pathlib import Path

import numpy as np

from diffit.data.example import MAX_CLASSES, Follow
from diffit.data.latents import Facts, LatentSet, checked_labels
from diffit.data.layouts.fast_dit import numbered
from diffit.data.layouts.forms import take
from diffit.data.layouts.reading import as_first, latent_shape, read_npy_file
from diffit.errors import DataError

LABELS = "labels.npy"


class UViT:
    """The numbered npy files of a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._paths = [path / name for name in numbered(path)]
        first = read_npy_file(self._paths[0])
        labels = self._read_labels()
        self.facts = Facts(
            images=len(self._paths),
            shape=latent_shape(first, name=str(self._paths[0]), posterior=True),
            form="mean-logvar", pixels="-1..1", dtype=first.dtype, mirrored=False,
            classes=() if labels is None else tuple(map(str, range(int(labels.max()) + 1))),
        )  # fmt: skip
        self._labels = None if labels is None else checked_labels(labels, self.facts, path)

    def stored(self, i: int, *, mirrored: bool = False) -> np.ndarray:
        values = read_npy_file(self._paths[i])
        return as_first(values, self.facts.stored_shape, self.facts.dtype, str(self._paths[i]))

    def label(self, i: int) -> int | None:
        return None if self._labels is None else int(self._labels[i])

    def _read_labels(self) -> np.ndarray | None:
        place = self.path / LABELS
        if not place.exists():
            return None
        labels = read_npy_file(place, floats=False)
        if labels.size and labels.max() >= MAX_CLASSES:
            raise DataError(f"{place}: labels are 0 to {MAX_CLASSES - 1}, not {labels.max()}")
        return labels


def is_uvit(path: Path) -> bool:
    """Whether a folder holds numbered npy files."""
    return (path / "0.npy").is_file()


def write_uvit(latents: LatentSet, out: Path, *, scale: float, follow: Follow) -> None:
    """The moments of all images, then of all mirrored images; and the labels."""
    out.mkdir(parents=True)
    count = latents.facts.images
    labels = []
    for k in follow(range(count * (2 if latents.facts.mirrored else 1))):
        i, mirrored = k % count, k >= count
        np.save(out / f"{k}.npy", take(latents, i, "mean-logvar", mirrored=mirrored, scale=1.0))
        labels.append(latents.label(i))
    if latents.classes:
        np.save(out / LABELS, np.array(labels, dtype=np.int64))
