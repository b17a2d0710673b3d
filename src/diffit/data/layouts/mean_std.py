"""EDM2 and REPA: one npy file an image, mean and standard deviation, and a `dataset.json`.

edm2: a zip or folder with `00000/img-mean-std-00000000.npy`, (2c, h, w) float32, and
      `dataset.json`, {"labels": [[name, label], ...]}; made of pixels in [0, 1]
repa: a folder with `vae-sd/`, in which lies the same; made of pixels in [-1, 1]
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from diffit.data.example import Follow
from diffit.data.files import Files, Folder, Zip
from diffit.data.labels import INDEX, class_names, label_table, read_index
from diffit.data.latents import Facts, LatentSet, Pixels
from diffit.data.layouts.forms import take
from diffit.data.layouts.reading import as_first, latent_shape, read_npy
from diffit.errors import DataError

REPA = "vae-sd"


class MeanStd:
    """The npy files of a folder or zip."""

    def __init__(self, path: Path, *, pixels: Pixels, inside: str = "") -> None:
        self.path = path
        root = path / inside if inside else path
        self._files: Files = Folder(root) if root.is_dir() else Zip(root)
        self._names = [name for name in self._files.others if name.endswith(".npy")]
        if not self._names:
            raise DataError(f"{root} holds no .npy files; name the folder or zip of the latents")
        first = self._read(0)
        shape = latent_shape(first, name=self._shown(0), posterior=True)
        self._labels, classes = self._find_labels()
        self.facts = Facts(
            images=len(self._names), shape=shape, form="mean-std", pixels=pixels, dtype=first.dtype,
            mirrored=False, classes=classes,
        )  # fmt: skip

    def stored(self, i: int, *, mirrored: bool = False) -> np.ndarray:
        return as_first(self._read(i), self.facts.stored_shape, self.facts.dtype, self._shown(i))

    def label(self, i: int) -> int | None:
        return self._labels[i] if self._labels else None

    def _read(self, i: int) -> np.ndarray:
        return read_npy(self._files.read(self._names[i]), name=self._shown(i))

    def _shown(self, i: int) -> str:
        return self._files.shown(self._names[i])

    def _find_labels(self) -> tuple[list[int], tuple[str, ...]]:
        where = self._files.shown(INDEX)
        if INDEX not in self._files.others:
            raise DataError(f"{where} is missing, which this layout needs for its labels")
        index = read_index(self._files.read(INDEX), where)
        if index["labels"] is None:
            return [], ()
        table = label_table(index["labels"], where)
        missing = [name for name in self._names if name not in table]
        if missing:
            raise DataError(f"{where} has no label for {missing[0]}; add it")
        labels = [table[name] for name in self._names]
        return labels, class_names(index.get("classes"), max(labels) + 1, where)


def open_edm2(path: Path) -> MeanStd:
    """Latents as EDM2's `dataset_tool.py encode` writes them."""
    return MeanStd(path, pixels="0..1")


def open_repa(path: Path) -> MeanStd:
    """Latents as REPA's preprocessing writes them; ``path`` is the folder above `vae-sd`, or it."""
    return MeanStd(path, pixels="-1..1", inside=REPA if (path / REPA).is_dir() else "")


def write_edm2(latents: LatentSet, out: Path, *, scale: float, follow: Follow) -> None:
    """A zip if ``out`` ends in .zip, else a folder."""
    if out.suffix.lower() != ".zip":
        _write_folder(latents, out, follow)
        return
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in _members(latents, follow):
            archive.writestr(zipfile.ZipInfo(name), data)


def write_repa(latents: LatentSet, out: Path, *, scale: float, follow: Follow) -> None:
    """The folder `vae-sd` in ``out``; REPA wants the images beside it, in `images`."""
    _write_folder(latents, out / REPA, follow)


def _write_folder(latents: LatentSet, out: Path, follow: Follow) -> None:
    for name, data in _members(latents, follow):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)


def _members(latents: LatentSet, follow: Follow) -> Any:
    labels: list[tuple[str, int | None]] = []
    for i in follow(range(latents.facts.images)):
        name = f"{i // 1000:05d}/img-mean-std-{i:08d}.npy"
        buffer = io.BytesIO()
        np.save(buffer, take(latents, i, "mean-std", mirrored=False, scale=1.0))
        labels.append((name, latents.label(i)))
        yield name, buffer.getvalue()
    index: dict[str, Any] = {"labels": labels if latents.classes else None}
    if latents.classes and latents.classes != tuple(map(str, range(len(latents.classes)))):
        index["classes"] = latents.classes
    yield INDEX, json.dumps(index).encode()


__all__ = ["REPA", "MeanStd", "open_edm2", "open_repa", "write_edm2", "write_repa"]
