"""Claims: who does what, among processes that share nothing but a folder.

A claim is a file that its holder keeps locked and that names the holder's machine. The operating
system drops the lock when a process ends, however it ends: no clock, heartbeat or process number is
ever compared. On file systems whose locks reach no further than one machine, the name still tells
that another machine is at work, or was when it died.

Claims save work, they do not guard it: what is done under one must bear being done twice.
"""

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from diffit.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: every claim is granted
    fcntl = None  # type: ignore[assignment]

Holder = Literal["ours", "busy", "elsewhere"]
"""Who holds a claim: this process; another one that lives; or another machine, which may be dead.
An "elsewhere" is locked by this process all the same, so that others of this machine see "busy"."""

PAUSE = 0.2
"""Seconds between two looks at what another process is doing."""


@contextlib.contextmanager
def claim(path: Path) -> Iterator[Holder]:
    """Try to claim ``path`` for the time of the context; never waits.

    The file is removed at the end, but for one that belongs elsewhere; and but for an exception, so
    that it tells of work left half done.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    try:
        if not _lock(file):
            yield "busy"
            return
        here = platform.node().encode()
        named = os.read(file, 4096)
        if not named:
            os.write(file, here)
        ours = named in (b"", here)
        yield "ours" if ours else "elsewhere"
        if ours:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Claim ``path``, after waiting for other processes of this machine."""
    while True:
        with claim(path) as holder:
            if holder != "busy":
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        time.sleep(PAUSE)


def _lock(file: int) -> bool:
    """Whether the file could be locked; where a file system knows no locks, it counts as locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
