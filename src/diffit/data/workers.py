"""Processes that decode images beside the training process.

They import neither torch nor anything else that runs threads of its own, so they never compete
with the training process for more than the cores they were given; their priority is left alone.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffit.data.example import Example
from diffit.errors import DataError


class Decoded(NamedTuple):
    """Some examples: images (k, C, H, W) uint8 and labels (k,) int64, None without classes."""

    images: np.ndarray
    labels: np.ndarray | None


class Readable(Protocol):
    """What examples are read from; the loader knows by which keys."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if there are none."""

    def __getitem__(self, key: Any) -> Example: ...


class Workers:
    """A pool of processes that each hold the data set."""

    def __init__(self, dataset: Readable, count: int) -> None:
        # spawn: a forked copy of a process with threads or a GPU may hang.
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(dataset,),
        )

    def start(self, indices: Sequence[Any]) -> "Future[Decoded]":
        """Begin to read some examples."""
        try:
            return self._pool.submit(_read, tuple(indices))
        except BrokenProcessPool:
            raise DataError(_DIED) from None

    def finish(self, reading: "Future[Decoded]") -> Decoded:
        """Wait for what was begun."""
        try:
            return reading.result()
        except BrokenProcessPool:
            raise DataError(_DIED) from None

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def read(dataset: Readable, indices: Sequence[Any]) -> Decoded:
    """Some examples of a data set, stacked."""
    examples = [dataset[i] for i in indices]
    images = np.stack([example.image for example in examples])
    if not dataset.classes:
        return Decoded(images, None)
    return Decoded(images, np.array([example.label for example in examples], dtype=np.int64))


_DIED = (
    "a process that loads images has died, perhaps for want of memory; "
    "set data.workers to a smaller number, 0 for none"
)
_dataset: Readable | None = None  # of this worker process


def _begin(dataset: Readable) -> None:
    global _dataset
    _dataset = dataset
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=end_with_parent, daemon=True).start()
    if "torch" in sys.modules:  # the user's own script may have imported it
        sys.modules["torch"].set_num_threads(1)


def end_with_parent() -> None:
    """Wait for the end of the parent process, and follow it."""
    # A killed parent cannot say goodbye, and its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read(indices: Sequence[Any]) -> Decoded:
    if _dataset is None:
        raise RuntimeError("a worker was asked before it had its data set")
    return read(_dataset, indices)
