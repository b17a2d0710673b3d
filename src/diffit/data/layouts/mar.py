"""MAR: `CLASS/NAME.npz` with `moments` and `moments_flip`, (2c, h, w): mean and log-variance."""

from pathlib import Path

import numpy as np

from diffit.data.example import Follow
from diffit.data.files import Folder
from diffit.data.latents import Facts, LatentSet
from diffit.data.layouts.forms import take
from diffit.data.layouts.reading import as_first, latent_shape, read_npz
from diffit.errors import DataError

NAMES = ("moments", "moments_flip")


class MAR:
    """The npz files of a folder, whose sub-folders are the classes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = [name for name in Folder(path).others if name.endswith(".npz")]
        folders = [name.partition("/") for name in self._names]
        if not folders or any(not inside or "/" in inside for _, _, inside in folders):
            raise DataError(f"{path} must hold npz files in one sub-folder for each class")
        classes = tuple(sorted({folder for folder, _, _ in folders}))
        numbers = {name: i for i, name in enumerate(classes)}
        self._labels = [numbers[folder] for folder, _, _ in folders]
        first = self._read(0)["moments"]
        self.facts = Facts(
            images=len(self._names),
            shape=latent_shape(first, name=self._names[0], posterior=True),
            form="mean-logvar", pixels="-1..1", dtype=first.dtype, mirrored=True, classes=classes,
        )  # fmt: skip

    def stored(self, i: int, *, mirrored: bool = False) -> np.ndarray:
        values = self._read(i)["moments_flip" if mirrored else "moments"]
        return as_first(values, self.facts.stored_shape, self.facts.dtype, self._names[i])

    def label(self, i: int) -> int | None:
        return self._labels[i]

    def _read(self, i: int) -> dict[str, np.ndarray]:
        path = self.path / self._names[i]
        arrays = read_npz(path)
        if set(arrays) != set(NAMES):
            raise DataError(f"{path} holds {', '.join(sorted(arrays))}; not {' and '.join(NAMES)}")
        return arrays


def is_mar(path: Path) -> bool:
    """Whether the first sub-folder of a folder holds npz files."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return bool(folders) and any(folders[0].glob("*.npz"))


def write_mar(latents: LatentSet, out: Path, *, scale: float, follow: Follow) -> None:
    """Folders named as the classes where that can be done, else by their numbers."""
    if not latents.facts.mirrored:
        raise DataError("MAR reads mirrored latents as well, which these lack; encode with --flip")
    folders = _folders(latents.classes)
    for i in follow(range(latents.facts.images)):
        folder = out / folders[latents.label(i) or 0]
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            name: take(latents, i, "mean-logvar", mirrored=mirrored, scale=1.0)
            for name, mirrored in zip(NAMES, (False, True), strict=True)
        }
        np.savez(folder / f"{i:08d}.npz", **arrays)  # type: ignore[arg-type]


def _folders(classes: tuple[str, ...]) -> tuple[str, ...]:
    """A folder for each class, sorted as the classes are."""
    plain = all(name.replace("-", "").replace("_", "").isalnum() for name in classes)
    if plain and classes == tuple(sorted(set(classes))):
        return classes
    return tuple(f"{i:05d}" for i in range(len(classes)))
