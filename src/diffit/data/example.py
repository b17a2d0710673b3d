"""What a data set is: images of one shape with their labels, by number."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np

MAX_CLASSES = 100_000
"""Labels beyond are mistakes: a table of embeddings with a row for each would not fit anywhere."""


Follow = Callable[[range], Iterable[int]]
"""Wraps the numbers of the images to come, to show progress."""


class Example(NamedTuple):
    """One image (C, H, W) uint8, or latent, and its label, None where the set has none."""

    image: np.ndarray
    label: int | None


class Dataset(Protocol):
    """A fixed list of examples of one shape."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if there are none."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def label(self, i: int) -> int | None:
        """The label of example i, without reading its image."""
