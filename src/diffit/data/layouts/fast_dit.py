"""fast-DiT: `NAME_features/0.npy`, a drawn latent (1, c, h, w) times 0.18215, and
`NAME_labels/0.npy`, its label (1,).
"""

from pathlib import Path

import numpy as np

from diffit.data.example import MAX_CLASSES, Follow
from diffit.data.latents import Facts, LatentSet, checked_labels
from diffit.data.layouts.forms import take
from diffit.data.layouts.reading import as_first, latent_shape, read_npy_file
from diffit.errors import DataError

SCALE = 0.18215
"""Of Stable Diffusion's autoencoder; it is in the stored numbers."""


class FastDiT:
    """Two folders of npy files, by number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        features, labels = _folders(path)
        self._paths = [features / name for name in numbered(features)]
        self._label_paths = [labels / path.name for path in self._paths]
        first = self._read(0)
        shape = latent_shape(first, name=str(self._paths[0]), posterior=False)
        values = np.array([self._read_label(p) for p in self._label_paths])
        count = int(values.max()) + 1
        if not 0 < count <= MAX_CLASSES:
            raise DataError(f"{labels}: labels are 0 to {MAX_CLASSES - 1}, not {count - 1}")
        self.facts = Facts(
            images=len(self._paths), shape=shape, form="point", pixels="-1..1", dtype=first.dtype,
            mirrored=False, classes=tuple(map(str, range(count))), scaled_by=SCALE,
        )  # fmt: skip
        self._labels = checked_labels(values, self.facts, labels)

    def stored(self, i: int, *, mirrored: bool = False) -> np.ndarray:
        return as_first(
            self._read(i), self.facts.stored_shape, self.facts.dtype, str(self._paths[i])
        )

    def label(self, i: int) -> int | None:
        return int(self._labels[i])

    def _read(self, i: int) -> np.ndarray:
        values = read_npy_file(self._paths[i])
        if values.ndim != 4 or len(values) != 1:
            raise DataError(f"{self._paths[i]} is {values.shape}; it must be (1, c, h, w)")
        return np.asarray(values[0])

    def _read_label(self, path: Path) -> int:
        if not path.is_file():
            raise DataError(f"{path} is missing, the label of the latent of that name")
        values = read_npy_file(path, floats=False)
        if values.size != 1:
            raise DataError(f"{path} holds {values.size} numbers; it must be one label")
        return int(values.reshape(-1)[0])


def is_fast_dit(path: Path) -> bool:
    """Whether a folder has one folder of features and one of labels."""
    return len(list(path.glob("*_features"))) == len(list(path.glob("*_labels"))) == 1


def write_fast_dit(latents: LatentSet, out: Path, *, scale: float, follow: Follow) -> None:
    """Latents and labels, one file each."""
    size = 8 * latents.shape[1]
    features, labels = out / f"imagenet{size}_features", out / f"imagenet{size}_labels"
    features.mkdir(parents=True)
    labels.mkdir()
    for i in follow(range(latents.facts.images)):
        values = take(latents, i, "point", mirrored=False, scale=scale)
        np.save(features / f"{i}.npy", values[None])
        np.save(labels / f"{i}.npy", np.array([latents.label(i)], dtype=np.int64))


def _folders(path: Path) -> tuple[Path, Path]:
    features, labels = list(path.glob("*_features")), list(path.glob("*_labels"))
    if len(features) != 1 or len(labels) != 1:
        raise DataError(f"{path} must hold one folder NAME_features and one NAME_labels")
    return features[0], labels[0]


def numbered(folder: Path) -> list[str]:
    """`0.npy`, `1.npy`, ... in the order of the numbers."""
    names = [path.name for path in folder.glob("*.npy") if path.stem.isdecimal()]
    if not names:
        raise DataError(f"{folder} holds no files such as 0.npy")
    return sorted(names, key=lambda name: int(name.removesuffix(".npy")))
