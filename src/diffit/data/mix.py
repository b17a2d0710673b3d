"""Several data sets as one, by weight: from which an image comes follows from (seed, number)."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from diffit.data.example import Dataset, Example
from diffit.data.shards import ShardSet
from diffit.errors import DataError

BLOCK = 1024
"""Among so many consecutive images, each set has exactly its share, rounded to whole images."""
Source = Dataset | ShardSet


class Mixture:
    """Data sets that are trained on together.

    As a `Dataset` it is one after the other; a loader takes them by weight.

    Args:
        sources: of one shape, and with the same classes.
        weights: how often images of each come, relative to each other.
        names: what messages call them.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], names: Sequence[str]
    ) -> None:
        self.sources, self.weights = tuple(sources), tuple(weights)
        first = self.sources[0]
        for source, name in zip(self.sources, names, strict=True):
            if source.shape != first.shape:
                raise DataError(
                    f"{name} has images of {_shape(source)}, {names[0]} of {_shape(first)}; set "
                    "data.size and data.channels"
                )
            if source.classes != first.classes:
                raise DataError(
                    f"{name} has {len(source.classes)} classes ({_some(source)}), {names[0]} has "
                    f"{len(first.classes)} ({_some(first)}); make them the same, or take the "
                    "images alone with data.labels: false"
                )
        quotas(self.weights)
        self.classes, self.shape = first.classes, first.shape

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, i: int | tuple[int, int | tuple[int, int]]) -> Example:
        """Example i of all, or (source, example i of it)."""
        source, inner = i if isinstance(i, tuple) else self._locate(i)
        return self.sources[source][inner]  # type: ignore[index]

    def label(self, i: int) -> int | None:
        """The label of example i, without decoding its image."""
        source, inner = self._locate(i)
        return self.sources[source].label(inner)

    def _locate(self, i: int) -> tuple[int, int]:
        for number, source in enumerate(self.sources):
            if i < len(source):
                return number, i
            i -= len(source)
        raise IndexError(i)


def at_hand(dataset: Dataset) -> Sequence[Any]:
    """Keys of examples that can be read without fetching more than one shard."""
    if isinstance(dataset, Mixture):
        return [(0, key) for key in at_hand(dataset.sources[0])]
    if isinstance(dataset, ShardSet) and dataset.copies.needed(0):
        return [(0, place) for place in range(len(dataset.open(0)))]
    return range(len(dataset))


def quotas(weights: Sequence[float]) -> np.ndarray:
    """(S,) images of each source in a block: shares in whole numbers, by the largest remainders."""
    exact = [Fraction(weight) / sum(map(Fraction, weights)) * BLOCK for weight in weights]
    whole = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda k: (whole[k] - exact[k], k))
    for k in by_rest[: BLOCK - sum(whole)]:
        whole[k] += 1
    if min(whole) == 0:
        raise DataError(
            f"the weight {weights[whole.index(0)]} of data.mix is less than 1/{2 * BLOCK} of all; "
            "raise it, or leave that set out"
        )
    return np.array(whole)


def _shape(source: Source) -> str:
    channels, height, width = source.shape
    return f"{height} x {width} x {channels}"


def _some(source: Source) -> str:
    return ", ".join(source.classes[:3]) + (", ..." if len(source.classes) > 3 else "") or "none"
