"""The image files of a folder or a zip: found, named, read within bounds; nothing is unpacked."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from diffit.data.images import check_size, read_file
from diffit.errors import DataError

SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pnm",
})  # fmt: skip
"""File names that are taken for images, in small letters."""
JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


class Files(Protocol):
    """Files under one root."""

    @property
    def path(self) -> Path:
        """The folder or zip."""

    @property
    def images(self) -> Sequence[str]:
        """Names of the image files, relative to the root, with `/`, sorted."""

    @property
    def others(self) -> Sequence[str]:
        """Names of the files that are no images by their name, sorted."""

    @property
    def hidden(self) -> int:
        """How many hidden files and folders were passed over."""

    def read(self, name: str) -> bytes:
        """The bytes of one file; DataError, with its name, if that cannot be had."""

    def shown(self, name: str) -> str:
        """How messages call one file."""


class Folder:
    """Files of a folder and the folders below; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hidden = 0
        names = sorted(self._walk(path, "", ()))
        self.images = [name for name in names if is_image(name)]
        self.others = [name for name in names if not is_image(name)]

    def read(self, name: str) -> bytes:
        return read_file(self.path / name, name=self.shown(name))

    def shown(self, name: str) -> str:
        return printable(str(self.path / name))

    def _walk(self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        shown = printable(str(folder))
        try:
            status = folder.stat()
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            raise DataError(
                f"{shown} cannot be read: {error.strerror}; mend its permissions"
            ) from None
        own = (status.st_dev, status.st_ino)
        if own in above:
            raise DataError(f"{shown} is a link to a folder that holds it; remove it")
        for entry in entries:
            if is_hidden(entry.name):
                self.hidden += 1
            elif entry.is_dir():
                yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, own))
            else:
                yield prefix + entry.name


class Zip:
    """Files of a zip archive, read in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0
        names = sorted(info.filename for info in self._open().infolist())
        every = [name for name in names if not name.endswith("/")]
        self._check_names(every)
        names = [name for name in every if not any(map(is_hidden, name.split("/")))]
        self.hidden = len(every) - len(names)
        self.images = [name for name in names if is_image(name)]
        self.others = [name for name in names if not is_image(name)]

    def read(self, name: str) -> bytes:
        archive, shown = self._open(), self.shown(name)
        info = archive.getinfo(name)
        if info.flag_bits & 1:
            raise DataError(f"{shown} is encrypted; repack the archive without a password")
        # zipfile never gives more than the announced size.
        check_size(info.file_size, shown)
        try:
            return archive.read(info)
        except NotImplementedError:
            raise DataError(f"{shown}: this compression cannot be read; repack the zip") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{shown} is damaged in the archive: {error}") from None

    def shown(self, name: str) -> str:
        return printable(f"{self.path}:{name}")

    def _open(self) -> zipfile.ZipFile:
        # A forked process must not share the file position of its parent.
        if self._archive is None or self._owner != os.getpid():
            try:
                self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
            except zipfile.BadZipFile:
                raise DataError(f"{self.path} is no zip archive, or a truncated one") from None
            except OSError as error:
                raise DataError(f"{self.path} cannot be read: {error.strerror}") from None
        return self._archive

    def _check_names(self, names: list[str]) -> None:
        for name, following in pairwise(names):
            if name == following:
                raise DataError(f"{self.path} holds {printable(name)} twice; repack it")
        for name in names:
            if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name:
                raise DataError(f"{self.path} holds the path {printable(name)!r}; repack it")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether one part of a path is hidden, or litter of an operating system."""
    return name.startswith(".") or name in JUNK


def printable(text: str) -> str:
    """``text`` on one line; control codes and bytes that are no UTF-8 are spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
