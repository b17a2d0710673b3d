"""Files that lie elsewhere, fetched whole: http(s) by the standard library, the rest by fsspec.

A fetch bears what networks do: a connection that breaks is taken up again where it broke (a range
request), one that stalls is given up after `Patience.timeout`, a server that is overloaded or
restarting (408, 429, 5xx) is asked again, later and later. Pauses double, and each is drawn from
(seed, attempt, address), so that processes which fail together do not come back together. Attempts
that brought something do not count.
"""

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffit.errors import DataError

T = TypeVar("T")

BLOCK = 1 << 20
"""Bytes that are asked for or written at once."""
MAX_BYTES = 1 << 36
"""Larger files are refused: 64 GiB, where shards are of some hundred MiB."""
ROOM = 1 << 28
"""Bytes that a fetch leaves free on the disk."""
WORTH_ASKING_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
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


class BrokenOffError(Exception):
    """An attempt that failed in a way that may pass; its text says how."""


class Opened(NamedTuple):
    """A file from some byte on."""

    blocks: Iterator[bytes]
    start: int
    """The first byte that comes, which is 0 where the other side knows no ranges."""
    size: int | None
    """Of the whole file, if it is told."""
    version: str
    """What the other side calls this state of the file; empty if it says nothing."""


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
        for block in _open(address, 0, "", patience).blocks:
            data += block
            if len(data) > most:
                raise DataError(f"{address} is larger than {most >> 20} MiB; name another file")
        return bytes(data)

    return _persist(address, attempt, patience)


def size_of(address: str, *, patience: Patience | None = None) -> int | None:
    """Bytes of a remote file, None if the other side does not say."""
    patience = patience or Patience()

    def attempt() -> int | None:
        opened = _open(address, 0, "", patience)
        with contextlib.closing(opened.blocks):  # type: ignore[type-var]
            return opened.size

    return _persist(address, attempt, patience)


def expand(pattern: str) -> list[str]:
    """The addresses that a pattern with `*` or `?` stands for, by fsspec; sorted."""
    filesystem, path = _filesystem(pattern)
    protocol = pattern.split("://", 1)[0]
    try:
        found = filesystem.glob(path)
    except Exception as error:  # whatever a protocol's own library raises
        raise DataError(f"{pattern} cannot be listed: {_reason(error)}") from None
    return sorted(f"{protocol}://{str(name).lstrip('/')}" for name in found)


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
            opened = _open(address, before, version, patience)
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


def _open(address: str, start: int, version: str, patience: Patience) -> Opened:
    if address.startswith(("http://", "https://")):
        return _open_http(address, start, version, patience)
    return _open_fsspec(address, start)


def _open_http(address: str, start: int, version: str, patience: Patience) -> Opened:
    headers = {"Accept-Encoding": "identity", "User-Agent": "diffit"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version:
            headers["If-Range"] = version  # a file that was replaced comes from its beginning
    try:
        request = urllib.request.Request(address, headers=headers)
        answer = urllib.request.urlopen(request, timeout=patience.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in WORTH_ASKING_AGAIN:
            raise BrokenOffError(f"the server answered {error.code} {error.reason}") from None
        raise DataError(
            f"{address}: the server answered {error.code} {error.reason}; see whether the file "
            "is still there"
        ) from None
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise BrokenOffError(_reason(error)) from None
    except ValueError as error:
        raise DataError(f"{address} is no address: {_reason(error)}") from None
    length = answer.headers.get("Content-Length", "")
    rest = int(length) if length.isdigit() else None
    begins = start if answer.status == 206 else 0
    size = None if rest is None else begins + rest
    strong = answer.headers.get("ETag", "")
    told = answer.headers.get("Last-Modified", "") if strong.startswith("W/") else strong
    return Opened(_http_blocks(answer), begins, size, told)


def _http_blocks(answer: Any) -> Iterator[bytes]:
    with contextlib.closing(answer):
        while True:
            try:
                block = answer.read1(BLOCK)  # what has come, so that none of it is lost
            except (OSError, http.client.HTTPException) as error:
                raise BrokenOffError(_reason(error)) from None
            if not block:
                return
            yield block


def _open_fsspec(address: str, start: int) -> Opened:
    filesystem, path = _filesystem(address)
    try:
        info = filesystem.info(path)
    except FileNotFoundError:
        raise DataError(f"{address} is not there; see whether it was moved") from None
    except PermissionError as error:
        raise DataError(f"{address} may not be read: {_reason(error)}") from None
    except Exception as error:  # whatever a protocol's own library raises
        raise BrokenOffError(_reason(error)) from None
    size = int(info["size"])
    return Opened(_fsspec_blocks(filesystem, path, start, size), start, size, "")


def _fsspec_blocks(filesystem: Any, path: str, start: int, size: int) -> Iterator[bytes]:
    while start < size:
        stop = min(start + 8 * BLOCK, size)
        try:
            block = bytes(filesystem.cat_file(path, start=start, end=stop))
        except Exception as error:
            raise BrokenOffError(_reason(error)) from None
        if not block:
            return
        yield block
        start += len(block)


def _filesystem(address: str) -> tuple[Any, str]:
    protocol = address.split("://", 1)[0]
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        # fsspec's own message names the package that the protocol needs, such as s3fs.
        missing = f" and {error.name}" if error.name not in (None, "fsspec") else ""
        raise DataError(
            f"{protocol}:// needs fsspec{missing} ({_reason(error)}): "
            "pip install 'diffit-torch[streams]'"
        ) from None
    except ValueError as error:
        raise DataError(f"{address} cannot be read: {_reason(error)}") from None
    return filesystem, str(path)


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, or its name."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        error = inner
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


__all__ = ["Patience", "expand", "fetch", "is_remote", "pauses", "read", "size_of"]
