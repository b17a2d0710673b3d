"""Features of a set of images, unit by unit: in one process or several, remembered by content.

A unit is a run of neighbouring images. It is computed as a whole wherever it is computed, so that
features do not depend on the number of processes, and a killed measurement finds the units it had
finished in the cache.
"""

import hashlib
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
import torch

from diffit.data import Dataset
from diffit.data.workers import end_with_parent
from diffit.errors import UsageError
from diffit.evaluation.cache import FeatureCache
from diffit.evaluation.features import Extractor, Features, Recipe, open_features

AHEAD = 2
"""Units that each process may be ahead of the one that is summed up."""


class Unit(NamedTuple):
    """What is known of the images ``first``, ``first`` + 1, ..."""

    first: int
    digests: list[bytes]
    """sha256 of each image's pixels."""
    labels: list[int | None]
    features: list[Features]
    """Of each extractor, on the CPU."""


class Reader:
    """Reads units of images and computes their features.

    Args:
        images: the set.
        extractors: what to compute; those that would give equal numbers are run once.
        spatial: for each extractor, whether its spatial features are wanted.
        cache: where features of expensive extractors are looked up and kept; None: nowhere.
    """

    def __init__(
        self,
        images: Dataset,
        extractors: Sequence[Extractor],
        spatial: Sequence[bool],
        cache: FeatureCache | None = None,
    ) -> None:
        self.images, self.extractors, self.cache = images, list(extractors), cache
        wanted: dict[str, bool] = {}
        for extractor, positions in zip(extractors, spatial, strict=True):
            wanted[extractor.identity] = wanted.get(extractor.identity, False) or positions
        self.spatial = wanted

    def unit(self, first: int, stop: int) -> Unit:
        """The images from ``first`` to before ``stop``."""
        examples = [self.images[i] for i in range(first, stop)]
        pixels = np.stack([example.image for example in examples])
        digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in pixels]
        found: dict[str, Features] = {}
        shared = torch.from_numpy(pixels)  # one tensor, by which layers of a network share a pass
        for extractor in self.extractors:
            if extractor.identity not in found:
                found[extractor.identity] = self._features(extractor, shared, digests)
        features = [found[extractor.identity] for extractor in self.extractors]
        return Unit(first, digests, [example.label for example in examples], features)

    def _features(
        self, extractor: Extractor, pixels: torch.Tensor, digests: list[bytes]
    ) -> Features:
        spatial = self.spatial[extractor.identity]
        cache = self.cache if extractor.costly else None
        key = f"{extractor.identity} {tuple(pixels.shape)} {spatial}"
        if cache and (known := cache.read(key, digests)):
            return known
        found = extractor(pixels)
        found = Features(
            found.pool.cpu(),
            None if found.logits is None else found.logits.cpu(),
            found.spatial.cpu() if spatial and found.spatial is not None else None,
        )
        if cache:
            cache.write(key, digests, found)
        return found


def read_units(reader: Reader, *, size: int, processes: int = 1) -> Iterator[Unit]:
    """All units of a reader's images, in order.

    Args:
        size: images of a unit.
        processes: above 1, so many new processes compute with one thread each.
    """
    bounds = [
        (first, min(first + size, len(reader.images)))
        for first in range(0, len(reader.images), size)
    ]
    if processes == 1:
        for first, stop in bounds:
            yield reader.unit(first, stop)
        return
    yield from _in_processes(reader, bounds, min(processes, len(bounds)))


def _in_processes(reader: Reader, bounds: list[tuple[int, int]], processes: int) -> Iterator[Unit]:
    recipes = [e.recipe for e in reader.extractors if e.recipe is not None]
    if len(recipes) < len(reader.extractors):
        raise ValueError("an extractor without a recipe cannot be opened in another process")
    spatial = [reader.spatial[extractor.identity] for extractor in reader.extractors]
    # spawn: a forked copy of a process with threads or a GPU may hang.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(reader.images, recipes, spatial, reader.cache),
    )
    waiting: deque[Future[Unit]] = deque()
    try:
        for first, stop in bounds:
            waiting.append(pool.submit(_unit, first, stop))
            if len(waiting) > AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UsageError(
            "a process that computes features has died, perhaps for want of memory; repeat the "
            "command to continue, with fewer --processes"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_reader: Reader | None = None  # of this worker process


def _begin(
    images: Dataset, recipes: list[Recipe], spatial: list[bool], cache: FeatureCache | None
) -> None:
    global _reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _reader = Reader(images, [open_features(**r._asdict()) for r in recipes], spatial, cache)


def _unit(first: int, stop: int) -> Unit:
    if _reader is None:
        raise RuntimeError("a worker was asked before it had its images")
    return _reader.unit(first, stop)
