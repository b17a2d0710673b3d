"""The images that `diffit explain` looks at: files, members of data sets, whole data sets."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import tyro
from pydantic import AfterValidator
from torch import Tensor

from diffit.config import nearest
from diffit.data import Dataset, open_dataset
from diffit.data.builtin import PREFIX
from diffit.data.crop import center_crop
from diffit.data.images import decode, read_file, to_array
from diffit.errors import DataError, UsageError

MEMBER = re.compile(r"(?P<path>.+):(?P<number>\d+)")
"""`builtin:digits-test:3` is image 3 of a set."""


def named(images: tuple[str, ...]) -> tuple[str, ...]:
    """The images that a user named; ValueError if there are none."""
    if not images:
        raise ValueError("name an image file, or an image of a set such as builtin:digits-test:3")
    return images


Images = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="IMAGE"),
    AfterValidator(named),
]
"""The argument of verbs that look at single images."""


class Example(NamedTuple):
    """One image.

    Attributes:
        name: what the user called it.
        number: its noise follows from the seed and this.
        image: (C, H, W) uint8.
        label: its true class as a number of the classifier, None if it is not known.
    """

    name: str
    number: int
    image: np.ndarray
    label: int | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the image."""
        channels, height, width = self.image.shape
        return channels, height, width


def to_tensor(examples: Sequence[Example]) -> Tensor:
    """(B, C, H, W) float32 in [-1, 1]; DataError unless all have one size."""
    shapes = {example.image.shape for example in examples}
    if len(shapes) > 1:
        raise DataError("the images differ in size; add --size to crop and resize all of them")
    pixels = np.stack([example.image for example in examples])
    return torch.from_numpy(pixels).float() / 127.5 - 1


def read_examples(
    names: Sequence[str], *, channels: int, size: int | None, classes: Sequence[str]
) -> list[Example]:
    """Image files and members of data sets (`SET:NUMBER`), in the order of their names.

    A file's number is its place among the names, a member's its number in the set, so that
    `certify SET` and `predict SET:3` see the same noise.

    Args:
        names: as the user wrote them.
        channels: 1 (grey) or 3 (RGB) to convert to.
        size: crop the middle square and resize it to this side; None: as the image is.
        classes: names of the classifier's classes, by which members find their labels.
    """
    return [
        _read(name, place, channels=channels, size=size, classes=classes)
        for place, name in enumerate(names)
    ]


def _read(
    name: str, place: int, *, channels: int, size: int | None, classes: Sequence[str]
) -> Example:
    member = MEMBER.fullmatch(name)
    if member is not None and not Path(name).exists():
        dataset = open_dataset(member["path"], size=size, channels=_channels(channels))
        number = int(member["number"])
        if number >= len(dataset):
            raise DataError(
                f"{name}: {member['path']} has {len(dataset)} images, the last is number "
                f"{len(dataset) - 1}"
            )
        label = dataset.label(number)
        known = label is not None and dataset.classes[label] in classes
        true = list(classes).index(dataset.classes[label]) if label is not None and known else None
        return Example(name, number, dataset[number].image, true)
    if name.startswith(PREFIX) or Path(name).is_dir():
        raise UsageError(f"{name} is a set of images; name one of them, such as {name}:0")
    image = decode(read_file(Path(name)), name=name)
    if size is not None:
        image = center_crop(image, size, name=name)
    return Example(name, place, to_array(image, channels), None)


class LabelledSet:
    """The images of a set that are looked at, with labels in the numbers of the classifier.

    Args:
        path: a folder, zip or npz with classes, or `builtin:NAME`.
        channels, size: as for `read_examples`.
        classes: the classifier's.
        by: how classes of the set are found among those of the classifier: by "name", or by
            "order", where both have as many and they are the same in another spelling.
        every, limit: look at every so-many-th image, and at so many at most; None: all of those.
    """

    def __init__(
        self,
        path: str,
        *,
        channels: int,
        size: int | None,
        classes: Sequence[str],
        by: str = "name",
        every: int = 1,
        limit: int | None = None,
    ) -> None:
        self.dataset: Dataset = open_dataset(path, size=size, channels=_channels(channels))
        self.path = path
        self._classes = match_classes(path, self.dataset.classes, classes, by=by)
        self.numbers = range(0, len(self.dataset), every)[:limit]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.dataset.shape

    def __getitem__(self, place: int) -> Example:
        number = self.numbers[place]
        image, label = self.dataset[number]
        if label is None:
            raise DataError(f"image {number} of {self.path} has no class")
        return Example(f"{self.path}:{number}", number, image, self._classes[label])

    def examples(self) -> list[Example]:
        """All of those that are looked at."""
        return [self[place] for place in range(len(self))]


def match_classes(
    path: str, names: Sequence[str], classes: Sequence[str], *, by: str
) -> tuple[int, ...]:
    """For each class of a set its number among the classifier's; DataError if it has none."""
    if not names:
        raise DataError(
            f"{path} has no classes, which are needed to tell right from wrong; `diffit explain "
            "predict` needs none"
        )
    if by == "order":
        if len(names) != len(classes):
            raise DataError(
                f"{path} has {len(names)} classes, the classifier {len(classes)}; by order they "
                "must be as many"
            )
        return tuple(range(len(names)))
    for name in names:
        if name not in classes:
            raise DataError(
                f"class {name!r} of {path} is none of the classifier's ({nearest(name, [*classes])}"
                "); if they are the same in the same order, add --match order"
            )
    return tuple(list(classes).index(name) for name in names)


def _channels(channels: int) -> Literal[1, 3]:
    if channels not in (1, 3):
        raise UsageError(f"the classifier looks at {channels} channels; images have 1 or 3")
    return 1 if channels == 1 else 3
