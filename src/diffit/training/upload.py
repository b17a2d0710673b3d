"""Copies of checkpoints in another place: s3://, gs://, or whatever fsspec has a word for.

They are made in the background. A copy has all files of its checkpoint, `state.json` last: without
it a folder is no checkpoint, so that no reader takes a part for the whole.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diffit.errors import ConfigError
from diffit.sealed import STATE

TRIES = 5
"""How often a file is sent before it is given up."""
FIRST_PAUSE = 1.0
"""Seconds after the first failure; twice as many after each other."""

Say = Callable[[str], None]


class Uploads:
    """Sends checkpoints of a run, one after the other.

    Args:
        target: folder for the run's checkpoints, such as `s3://bucket/runs/faces`.
        say: told, between two steps, what went wrong.

    Raises:
        ConfigError: if the target cannot be opened.
    """

    def __init__(self, target: str, say: Say) -> None:
        self._system, self._path = open_target(target)
        self._target, self._say = target, say
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._pending: list[tuple[str, Future[None]]] = []

    def send(self, checkpoint: Path) -> None:
        """Begin to send a checkpoint that is in place."""
        self.report()
        self._pending.append((checkpoint.name, self._pool.submit(self._copy, checkpoint)))

    def report(self) -> None:
        """Say what has failed so far; the run does not end over it."""
        waiting = []
        for name, sending in self._pending:
            if not sending.done():
                waiting.append((name, sending))
            elif (error := sending.exception()) is not None:
                self._say(f"checkpoint {name} was not sent to {self._target}: {_words(error)}")
        self._pending = waiting

    def close(self) -> None:
        """Wait until all that was begun is sent."""
        if self._pending:
            self._say(f"sending {len(self._pending)} checkpoints to {self._target} ...")
        self._pool.shutdown(wait=True)
        self.report()

    def _copy(self, checkpoint: Path) -> None:
        target = f"{self._path}/checkpoints/{checkpoint.name}"
        files = sorted(checkpoint.iterdir(), key=lambda file: (file.name == STATE, file.name))
        for file in files:
            self._send(file, f"{target}/{file.name}")

    def _send(self, file: Path, target: str) -> None:
        pause = FIRST_PAUSE
        for left in reversed(range(TRIES)):
            try:
                self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._system.put_file(str(file), target)
            except FileNotFoundError:
                raise  # newer checkpoints have replaced this one: trying again is of no use
            except Exception:  # each of the many kinds of storage has errors of its own
                if not left:
                    raise
                time.sleep(pause)
                pause *= 2
            else:
                return


def open_target(target: str) -> tuple[Any, str]:
    """The file system of fsspec that a target lies in, and its path there."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(target)
        system.makedirs(path, exist_ok=True)
    except (ImportError, ValueError, OSError) as error:
        raise ConfigError(f"train.upload {target} cannot be opened: {_words(error)}") from None
    return system, path.rstrip("/")


def _words(error: BaseException) -> str:
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())
