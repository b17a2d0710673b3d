"""Files that lie elsewhere, fetched whole: http(s) by the standard library, the rest by fsspec.

A fetch bears what networks do: a connection that breaks is taken up again where it broke (a range
request), one that stalls is given up after `Patience.timeout`, a server that is overloaded or
restarting (408, 429, 5xx) is asked again, later and later. Pauses double, and each is drawn from
(seed, attempt, address), so that processes which fail together do not come back together. Attempts
that brought something do not count.
"""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffit.data.transports import BrokenOffError, Opened, open_remote
from diffit.errors import DataError

T = TypeVar("T")

MAX_BYTES = 1 << 36
"""Larger files are refused: 64 GiB, where shards are of some hundred MiB."""
ROOM = 1 << 28
"""Bytes that a fetch leaves free on the disk."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Patience(NamedTuple):
    """How long a fetch goes on against resistance."""

    retries: int = 8
    """Attempts in a row that may bring nothing, after the first."""
    timeout: float = 30.0
    """Seconds without a byte after which an attempt is given up."""
    first_pause: float = 0.5
    """Seconds before the second attempt, on average; then twice as many each time."""
    longest_pause: float = 60.0
    seed: int = 0
    """Of the pauses' jitter."""


def is_remote(path: str) -> bool:
    """Whether a path is an address such as `https://host/file` or `s3://bucket/file`."""
    return _ADDRESS.match(path) is not None and not path.startswith("file://")


def pauses(patience: Patience, address: str) -> Iterator[float]:
    """Seconds to wait after each failed attempt: doubling, each between half and 3/2 of its mean.

    Exponential back-off with jitter, as in Brooker, "Exponential Backoff And Jitter" (AWS, 2015).
    """
    from diffit import draws  # imports torch, which the loader's workers do without

    for attempt in range(patience.retries):
        mean = min(patience.first_pause * 2**attempt, patience.longest_pause)
        share = draws.uniform(patience.seed, [attempt], f"pause {address}").item()
        yield mean * (0.5 + share)


def fetch(
    address: str,
    to: Path,
    *,
    size: int | None = None,
    blake2b: str = "",
    patience: Patience | None = None,
    sleep: Callable[[float], Any] = time.sleep,
) -> int:
    """Copy a file to ``to``, which appears when it is whole; its size in bytes.

    Args:
        address: of http, https, or any protocol of fsspec.
        to: a free name in a folder that is there.
        size: bytes that it must have; None: as many as the other side says.
        blake2b: checksum that it must have, in hex; empty: any.
        patience: with networks.
        sleep: waits; replaced by tests.

    Raises:
        DataError: what is wrong with the file, the address or the disk, in one sentence.
    """
    patience = patience or Patience()
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            found = _write(address, file, size, patience, sleep)
        _check(address, partial, found, size, blake2b)
        partial.replace(to)
    except OSError as error:
        raise DataError(
            f"{to} cannot be written: {error.strerror or error}; make room, or name another "
            "folder with data.stream.cache"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return found


def read(address: str, *, most: int, patience: Patience | None = None) -> bytes:
    """A small remote file, of ``most`` bytes or fewer."""
    patience = patience or Patience()

    def attempt() -> bytes:
        data = bytearray()
        for block in open_remote(address, 0, "", timeout=patience.timeout).blocks:
            data += block
            if len(data) > most:
                raise DataError(f"{address} is larger than {most >> 20} MiB; name another file")
        return bytes(data)

    return _persist(address, attempt, patience)


def size_of(address: str, *, patience: Patience | None = None) -> int | None:
    """Bytes of a remote file, None if the other side does not say."""
    patience = patience or Patience()

    def attempt() -> int | None:
        opened = open_remote(address, 0, "", timeout=patience.timeout)
        with contextlib.closing(opened.blocks):  # type: ignore[type-var]
            return opened.size

    return _persist(address, attempt, patience)


def _persist(address: str, attempt: Callable[[], T], patience: Patience) -> T:
    waits = pauses(patience, address)
    while True:
        try:
            return attempt()
        except BrokenOffError as error:
            _wait_or_give_up(address, error, waits, patience, time.sleep)


def _write(
    address: str,
    file: Any,
    size: int | None,
    patience: Patience,
    sleep: Callable[[float], Any],
) -> int:
    """Write until the file is whole; its size."""
    waits, version, room = pauses(patience, address), "", False
    while True:
        before = file.tell()
        try:
            opened = open_remote(address, before, version, timeout=patience.timeout)
            version = opened.version
            if opened.start != before:
                file.seek(opened.start)
                file.truncate()
            if not room:
                _refuse_too_large(address, opened.size, Path(file.name).parent)
                room = True
            _copy(opened, file, size or opened.size or MAX_BYTES)
            whole = size or opened.size
            if whole is not None and file.tell() < whole:
                raise BrokenOffError(f"ended after {file.tell()} of {whole} bytes")
            return int(file.tell())
        except BrokenOffError as error:
            if file.tell() > before:
                waits = pauses(patience, address)
            _wait_or_give_up(address, error, waits, patience, sleep)


def _copy(opened: Opened, file: Any, most: int) -> None:
    for block in opened.blocks:
        if file.tell() + len(block) > most:
            # More than was announced: what follows the file is none of it.
            raise DataError(
                f"more than the {most} bytes of {Path(file.name).name} came; restore it"
            )
        file.write(block)


def _wait_or_give_up(
    address: str,
    error: Exception,
    waits: Iterator[float],
    patience: Patience,
    sleep: Callable[[float], Any],
) -> None:
    pause = next(waits, None)
    if pause is None:
        raise DataError(
            f"{address} could not be fetched in {patience.retries + 1} attempts, the last: "
            f"{error}; see whether the server is up, then repeat the command to go on"
        ) from None
    sleep(pause)


def _check(address: str, path: Path, found: int, size: int | None, blake2b: str) -> None:
    if size is not None and found != size:
        raise DataError(
            f"{address} has {found} bytes, but its index says {size}: it was truncated or "
            "replaced; restore it"
        )
    if blake2b:
        with path.open("rb") as file:
            told = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
        if told != blake2b:
            raise DataError(f"{address} is damaged: its checksum does not match; restore it")


def _refuse_too_large(address: str, size: int | None, folder: Path) -> None:
    if size is None:
        return
    if size > MAX_BYTES:
        raise DataError(f"{address} has {size >> 30} GiB; divide it into shards of less than 1 GiB")
    free = shutil.disk_usage(folder).free
    if size + ROOM > free:
        raise DataError(
            f"{address} has {size >> 20} MiB, but {folder} has {free >> 20} MiB free; make room, "
            "or name another folder with data.stream.cache"
        )
