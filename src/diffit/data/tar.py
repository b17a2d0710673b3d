"""Tar files in the WebDataset convention: consecutive members of one name are one sample.

`000123.jpg`, `000123.cls`: an image and its label; `.json` may hold `label` or `cls` instead. Only
the headers are read to know where everything lies; nothing is unpacked, and no header makes this
module allocate more than `MAX_HEADER` bytes. Python's `tarfile` would read an extended header of
any announced size into memory, which is why the format (POSIX.1-1988 and pax, GNU long names) is
read here.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from diffit.data.example import MAX_CLASSES
from diffit.data.files import is_hidden, is_image, printable
from diffit.data.images import check_size
from diffit.errors import DataError

BLOCK = 512
MAX_HEADER = 1 << 16
"""Bytes of an extended header or a label file; larger ones are refused."""
MAX_SAMPLES = 1 << 24
FILE, DIRECTORY, LONG_NAME, PAX, PAX_GLOBAL = (b"0", b"\0", b"7"), b"5", b"L", b"x", b"g"

NO_LABEL, BAD_LABEL = -1, -2


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


class TarShard:
    """The samples of one tar file, found when it is opened.

    Args:
        path: a local file.
        name: what messages call it.

    Attributes:
        passed_over: how many members are hidden, or neither images nor labels.
    """

    def __init__(self, path: Path, *, name: str = "") -> None:
        self.name = name or str(path)
        self.passed_over = 0
        self._path = path
        self._file: IO[bytes] | None = None
        rows: list[tuple[int, int, int]] = []
        self._names: list[str] = []
        try:
            with path.open("rb") as file:
                for key, offset, size, label in self._samples(file):
                    rows.append((offset, size, label))
                    self._names.append(key)
                    if len(rows) > MAX_SAMPLES:
                        raise DataError(f"{self.name} holds more than {MAX_SAMPLES} images")
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror}") from None
        self._table = np.array(rows, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._table)

    def shown(self, i: int) -> str:
        """How messages call sample ``i``."""
        return printable(f"{self.name}:{self._names[i]}")

    def label(self, i: int) -> int:
        """Label of sample ``i``, NO_LABEL or BAD_LABEL."""
        return int(self._table[i, 2])

    def read(self, i: int) -> bytes:
        """The image file of sample ``i``; DataError if it cannot be had."""
        offset, size, _ = self._table[i].tolist()
        check_size(size, self.shown(i))
        try:
            self._file = self._file or self._path.open("rb", buffering=0)
            # At a place of its own: other threads and forked processes may read from the same file.
            data = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{self.shown(i)} cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise DataError(f"{self.shown(i)} is cut off: {self.name} was truncated; restore it")
        return data

    def _samples(self, file: IO[bytes]) -> Iterator[tuple[str, int, int, int]]:
        """(name, offset, size, label) of each sample with an image, in the order of the file."""
        key, image, label = "", None, NO_LABEL
        for member in members(file, self.name):
            own, ending = split_name(member.name)
            if is_hidden(PurePosixPath(member.name).name):
                self.passed_over += 1
                continue
            if own != key:
                if image is not None:
                    yield image.name, image.offset, image.size, label
                key, image, label = own, None, NO_LABEL
            if is_image(f"_.{ending}"):
                if image is not None:
                    raise DataError(
                        f"{self.name} has two images for one sample, {printable(image.name)} and "
                        f"{printable(member.name)}; keep one of them, or give each its own name"
                    )
                image = member
            elif ending in ("cls", "json"):
                label = _label(file, member) if label == NO_LABEL else label
            else:
                self.passed_over += 1
        if image is not None:
            yield image.name, image.offset, image.size, label


def members(file: IO[bytes], name: str) -> Iterator[Member]:
    """The files in a tar, by their headers; DataError, with ``name``, if it is damaged."""
    file.seek(0, os.SEEK_END)
    end = file.tell()
    position, long_name, long_size = 0, "", -1
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise DataError(
                f"{name} is truncated: it ends at byte {end} without a last block; restore it"
            )
        if not header.strip(b"\0"):
            return
        own, size, kind = _header(header, name, position)
        size = long_size if long_size >= 0 and kind not in (LONG_NAME, PAX, PAX_GLOBAL) else size
        start = position + BLOCK
        if start + size > end:
            raise DataError(
                f"{name} is truncated: {printable(long_name or own)} needs {size} bytes, and "
                f"{max(0, end - start)} are left"
            )
        position = start + -(-size // BLOCK) * BLOCK
        if kind in (LONG_NAME, PAX, PAX_GLOBAL):
            if size > MAX_HEADER:
                raise DataError(f"{name} has a header of {size} bytes; pack it again")
            text = file.read(size)
            if kind == LONG_NAME:
                long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == PAX:
                long_name, long_size = _pax(text, name, long_name)
            continue
        member = Member(long_name or own, start, size)
        long_name, long_size = "", -1
        if kind in FILE and not member.name.endswith("/"):
            _check_name(member.name, name)
            yield member


def split_name(name: str) -> tuple[str, str]:
    """`a/000.x.jpg` to (`a/000`, `x.jpg`): the name ends at the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    first, _, ending = last.partition(".")
    return folder + slash + first, ending.lower()


def _header(header: bytes, name: str, position: int) -> tuple[str, int, bytes]:
    """(name, size, kind) of a header block."""
    told = _number(header[148:156])
    if told != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        what = "is no tar file" if position == 0 else f"is damaged at byte {position}"
        raise DataError(f"{name} {what}; restore it")
    size = _number(header[124:136])
    if size is None:
        raise DataError(f"{name} is damaged at byte {position}; restore it")
    own = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # not so in GNU's
    if prefix:
        own = f"{prefix}/{own}"
    return own, size, header[156:157]


def _number(field: bytes) -> int | None:
    """An octal number, or a binary one as GNU writes large sizes."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(text: bytes, name: str, long_name: str) -> tuple[str, int]:
    """Name and size that a pax header sets, as they were and -1 where it does not."""
    size = -1
    while text:
        length, space, _ = text.partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(text):
            raise DataError(f"{name} has a damaged pax header; pack it again")
        key, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        text = text[int(length) :]
        if key == b"path":
            long_name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not value.isdigit():
                raise DataError(f"{name} has a damaged pax header; pack it again")
            size = int(value)
    return long_name, size


def _check_name(own: str, name: str) -> None:
    if own.startswith("/") or ".." in PurePosixPath(own).parts or "\\" in own:
        raise DataError(f"{name} holds the path {printable(own)!r}; pack it again")


def _label(file: IO[bytes], member: Member) -> int:
    """The label in a `.cls` or `.json` member; NO_LABEL if it is about other things."""
    if member.size > MAX_HEADER:
        return BAD_LABEL
    file.seek(member.offset)
    try:
        text = file.read(member.size).decode("ascii" if member.name.endswith("cls") else "utf-8")
        value = int(text) if member.name.lower().endswith(".cls") else _label_in(json.loads(text))
    except (ValueError, RecursionError):
        return BAD_LABEL
    return value if value < MAX_CLASSES and value >= NO_LABEL else BAD_LABEL


def _label_in(content: Any) -> int:
    """`label` or `cls` of a JSON object; NO_LABEL if it has neither."""
    content = content if isinstance(content, dict) else {}
    value = content.get("label", content.get("cls", NO_LABEL))
    return value if isinstance(value, int) and not isinstance(value, bool) else BAD_LABEL
