"""Pairs of clean and degraded images: two folders or zips with equal names."""

from pathlib import Path, PurePosixPath
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from diffit.config import Settings
from diffit.data.example import Example
from diffit.data.files import Files, printable
from diffit.data.image_set import ImageSet
from diffit.errors import DataError

Method = Literal["concat", "ir-sde", "resshift", "indi"]


class TaskConfig(Settings):
    """What a model learns to undo. Empty: it learns to make images."""

    name: str = ""
    """How clean images are degraded while training goes on: denoise-25, sr4, inpaint-box, ..."""
    pairs: str = ""
    """Folder or zip with the degraded image of each image in data.path, under the same name;
    instead of a name."""
    method: Method | None = None
    """concat shows the degraded image beside the noisy one (SR3, Palette); ir-sde, resshift and
    indi start from it. By default the one that model.formulation is."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.name and self.pairs:
            raise ValueError("task.name and task.pairs are both set; keep one of them")
        if self.method and not self.given:
            raise ValueError("task.method needs task.name or task.pairs, what is to be restored")
        return self

    @property
    def given(self) -> bool:
        """Whether there is a task."""
        return bool(self.name or self.pairs)


class PairSet:
    """Clean images with their degraded ones, which may have another size: they are resized.

    An example holds both, the channels of the degraded image behind those of the clean one.

    Args:
        clean: the images that a model is to make.
        degraded: has one image for each, of the same name but for its ending.
        size, channels: as of `ImageSet`, for both.
    """

    def __init__(
        self, clean: ImageSet, degraded: Files, *, size: int | None, channels: int
    ) -> None:
        self.clean = clean
        self.degraded = ImageSet(degraded, size=size, channels=channels, labels=False)
        self._partners = _partners(clean.files, degraded)
        self.classes = clean.classes
        self.shape = clean.shape
        if self.degraded.shape != clean.shape:
            raise DataError(
                f"{_where(degraded)} has images of {_size(self.degraded)}, "
                f"{_where(clean.files)} of {_size(clean)}; set data.size to bring both to one"
            )

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """(2 C, H, W) of what an example holds."""
        channels, height, width = self.shape
        return 2 * channels, height, width

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, i: int) -> Example:
        image, label = self.clean[i]
        degraded, _ = self.degraded[self._partners[i]]
        return Example(np.concatenate([image, degraded]), label)

    def label(self, i: int) -> int | None:
        """The label of example i, without reading its images."""
        return self.clean.label(i)


def _partners(clean: Files, degraded: Files) -> list[int]:
    """Which degraded image belongs to each clean one; DataError if one has no partner."""
    theirs = _numbers(degraded)
    ours = _numbers(clean)
    for names, others, where, what in (
        (ours, theirs, degraded, "degraded"),
        (theirs, ours, clean, "clean"),
    ):
        alone = sorted(names.keys() - others.keys())
        if alone:
            raise DataError(
                f"{len(alone)} of {len(names)} images have no {what} one of the same name in "
                f"{_where(where)}, such as {printable(alone[0])}; give each a partner"
            )
    return [theirs[name] for name in ours]


def _numbers(files: Files) -> dict[str, int]:
    """Name without its ending -> number of the image, in the order of the files."""
    found: dict[str, int] = {}
    for number, name in enumerate(files.images):
        key = str(PurePosixPath(name).with_suffix(""))
        if key in found:
            first = files.images[found[key]]
            raise DataError(
                f"{_where(files)} holds {printable(first)} and {printable(name)}, which both go "
                "by one name; remove one"
            )
        found[key] = number
    return found


def _where(files: Files) -> str:
    return printable(str(Path(files.path)))


def _size(images: ImageSet) -> str:
    channels, height, width = images.shape
    return f"{height} x {width} pixels of {channels} channel{'s' if channels > 1 else ''}"
