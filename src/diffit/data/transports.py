"""How the bytes of a remote file come: http(s) by the standard library, the rest by fsspec."""

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

from diffit.errors import DataError

BLOCK = 1 << 20
"""Bytes that are asked for at once."""
WORTH_ASKING_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


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


def open_remote(address: str, start: int, version: str, *, timeout: float) -> Opened:
    """A remote file from byte ``start`` on, or from 0 if it is no longer of ``version``.

    Raises:
        BrokenOffError: it may be worth to ask again.
        DataError: it is not.
    """
    if address.startswith(("http://", "https://")):
        return _open_http(address, start, version, timeout)
    return _open_fsspec(address, start)


def _open_http(address: str, start: int, version: str, timeout: float) -> Opened:
    headers = {"Accept-Encoding": "identity", "User-Agent": "diffit"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version:
            headers["If-Range"] = version  # a file that was replaced comes from its beginning
    try:
        request = urllib.request.Request(address, headers=headers)
        answer = urllib.request.urlopen(request, timeout=timeout)
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
    except Exception as error:  # whatever a protocol's own library raises
        raise DataError(f"{address} cannot be reached: {_reason(error)}") from None
    return filesystem, str(path)


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, or its name."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        error = inner
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def expand(pattern: str) -> list[str]:
    """The addresses that a pattern with `*` or `?` stands for, by fsspec; sorted."""
    filesystem, path = _filesystem(pattern)
    protocol = pattern.split("://", 1)[0]
    try:
        found = filesystem.glob(path)
    except Exception as error:  # whatever a protocol's own library raises
        raise DataError(f"{pattern} cannot be listed: {_reason(error)}") from None
    return sorted(f"{protocol}://{str(name).lstrip('/')}" for name in found)
