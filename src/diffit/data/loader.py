"""Endless batches of training images, in an order that follows from (seed, epoch).

The images of a run are numbered 0, 1, 2, ...; which image of the set number n is, and whether it
is mirrored, follows from (seed, n) alone. So the whole state of a loader is one number, and a
resumed run sees exactly the images that an uninterrupted one would have seen.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from diffit import draws
from diffit.data.arrays import Arrays
from diffit.data.example import Dataset
from diffit.data.latents import LatentSet
from diffit.data.workers import Decoded, Workers, read

BATCHES_AHEAD = 2
"""How many batches each worker has been asked for in advance."""


class Batch(NamedTuple):
    """Some consecutive images of a run."""

    image: Tensor
    """(B, C, H, W) uint8; of latents (B, 2c, h, w) or (B, c, h, w) float16 or float32."""
    label: Tensor | None
    """(B,) int64; None if the set has no classes."""
    number: Tensor
    """(B,) int64: which image of the run each one is."""


class _Ahead(NamedTuple):
    numbers: range
    indices: np.ndarray
    missing: np.ndarray
    reading: "Future[Decoded] | None"


class Loader:
    """Iterates for ever over batches; every epoch holds each image of the set once.

    Batches pass over the ends of epochs without a gap. Images are decoded once and kept in memory
    when all of them fit; from then on no workers are needed, and none run.

    Args:
        dataset: what to read.
        batch: images in a batch, of all processes together.
        seed: of the order and the flips.
        start: number of the first image: how many the run has seen before.
        flip: mirror each image with probability 1/2; of latents take those of the mirrored image.
        workers: processes that decode; 0 decodes here, when a batch is asked for.
        memory: bytes that may be used to keep decoded images.
        rank, world: this is process ``rank`` of ``world``, which share every batch in consecutive
            parts, equal or one image apart.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch: int,
        seed: int,
        start: int = 0,
        flip: bool = False,
        workers: int = 0,
        memory: int = 512 << 20,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if start < 0 or not 0 <= rank < world <= batch or len(dataset) == 0:
            raise ValueError(
                f"a loader needs images, start >= 0 and rank < world <= batch, not "
                f"{len(dataset)} images, batch {batch}, start {start}, rank {rank} of {world}"
            )
        self._dataset = dataset
        self._batch = batch
        self._seed, self._flip = seed, flip
        first, end = rank * batch // world, (rank + 1) * batch // world
        self._next, self._count = start + first, end - first
        self._orders: dict[int, np.ndarray] = {}
        # A latent cannot be mirrored: that of the mirrored image stands behind all others.
        self._behind = len(dataset) if flip and isinstance(dataset, LatentSet) else 0
        self._kept = _Kept.of(dataset, memory, copies=2 if self._behind else 1)
        # An array needs no decoding, and sending it to other processes would copy it.
        self._workers = (
            Workers(dataset, workers) if workers and not isinstance(dataset, Arrays) else None
        )
        self._depth = workers * BATCHES_AHEAD if self._workers else 0
        self._ahead: deque[_Ahead] = deque()

    def index(self, n: int) -> int:
        """Which example of the set image ``n`` of the run is."""
        epoch, place = divmod(n, len(self._dataset))
        if epoch not in self._orders:
            # Two epochs meet in a batch; older orders are never asked for again.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            generator = draws.generator(self._seed, epoch, "order")
            self._orders[epoch] = generator.permutation(len(self._dataset))
        return int(self._orders[epoch][place])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) <= self._depth:
            self._ahead.append(self._begin())
        return self._finish(self._ahead.popleft())

    def close(self) -> None:
        """End the workers, if there are any; what is iterated after that is decoded here."""
        self._release()
        if self._ahead:
            self._next = self._ahead[0].numbers.start
        self._ahead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> _Ahead:
        """Ask for the next batch: what is not in memory is left to the workers."""
        numbers = range(self._next, self._next + self._count)
        self._next += self._batch
        indices = np.array([self.index(n) for n in numbers])
        if self._behind:
            indices += self._behind * self._mirrored(numbers).numpy()
        missing = indices if self._kept is None else indices[~self._kept.filled[indices]]
        reading = None
        if self._workers is not None and len(missing):
            reading = self._workers.start(missing.tolist())
        return _Ahead(numbers, indices, missing, reading)

    def _finish(self, ahead: _Ahead) -> Batch:
        images, labels = self._decoded(ahead)
        image = torch.from_numpy(images)
        if self._flip and not self._behind:
            mirrored = self._mirrored(ahead.numbers).bool()
            image[mirrored] = image[mirrored].flip(-1)
        label = None if labels is None else torch.from_numpy(labels)
        return Batch(image, label, torch.tensor(ahead.numbers))

    def _mirrored(self, numbers: range) -> Tensor:
        """(B,) 0 or 1."""
        return draws.integers(self._seed, numbers, "flip", 2)

    def _decoded(self, ahead: _Ahead) -> Decoded:
        if self._kept is not None and self._kept.filled[ahead.indices].all():
            return self._kept.take(ahead.indices)
        if self._workers is not None and ahead.reading is not None:
            fresh = self._workers.finish(ahead.reading)
        else:
            fresh = read(self._dataset, ahead.missing.tolist())
        if self._kept is None:
            return fresh
        self._kept.add(ahead.missing, fresh)
        if self._kept.filled.all():
            self._release()  # the workers have done their part
        return self._kept.take(ahead.indices)

    def _release(self) -> None:
        if self._workers is not None:
            self._workers.close()
        self._workers, self._depth = None, 0


class _Kept:
    """Decoded images in memory, filled as they come."""

    def __init__(
        self, count: int, shape: tuple[int, ...], dtype: np.dtype, *, labels: bool
    ) -> None:
        self.filled = np.zeros(count, dtype=bool)
        self._images = np.empty((count, *shape), dtype=dtype)
        self._labels = np.zeros(count, dtype=np.int64) if labels else None

    @classmethod
    def of(cls, dataset: Dataset, memory: int, *, copies: int = 1) -> Self | None:
        """A store for all images of a set, None if they take more than ``memory`` bytes."""
        shape: tuple[int, ...] = getattr(dataset, "example_shape", dataset.shape)
        dtype = dataset.dtype if isinstance(dataset, LatentSet) else np.dtype(np.uint8)
        count = copies * len(dataset)
        if count * int(np.prod(shape)) * dtype.itemsize > memory:
            return None
        return cls(count, shape, dtype, labels=bool(dataset.classes))

    def add(self, indices: np.ndarray, decoded: Decoded) -> None:
        self._images[indices] = decoded.images
        if self._labels is not None and decoded.labels is not None:
            self._labels[indices] = decoded.labels
        self.filled[indices] = True

    def take(self, indices: np.ndarray) -> Decoded:
        labels = None if self._labels is None else self._labels[indices]
        return Decoded(self._images[indices], labels)
