"""Threads that fetch shards in the background."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class Fetcher:
    """Does what it is asked for, once for each key, in the order of the questions.

    Its threads are daemons: a process that ends does not wait for a transfer. What that leaves
    behind is a partial file, which the next fetch removes.

    Args:
        bring: called with a key.
        threads: transfers at a time.
    """

    def __init__(self, bring: Callable[[Any], Any], *, threads: int) -> None:
        self._bring = bring
        self._asked: dict[Hashable, Future[Any]] = {}
        self._queue: SimpleQueue[tuple[Any, Future[Any]] | None] = SimpleQueue()
        self._most, self._threads = threads, 0

    def ask(self, key: Hashable) -> "Future[Any]":
        """The future of what was asked for now or before."""
        if key not in self._asked:
            self._asked[key] = Future()
            self._queue.put((key, self._asked[key]))
            if self._threads < self._most:
                threading.Thread(target=self._work, daemon=True).start()
                self._threads += 1
        return self._asked[key]

    def forget(self, key: Hashable) -> None:
        """So that the next question for ``key`` is answered anew."""
        future = self._asked.pop(key, None)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Begin nothing more."""
        for future in self._asked.values():
            future.cancel()
        for _ in range(self._threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            key, future = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._bring(key))
                except BaseException as error:  # whoever waits for it gets it
                    future.set_exception(error)
