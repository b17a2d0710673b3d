"""Local copies of shards: fetched whole, shared by the processes of a machine.

Whole shards rather than single images or a stream: one request for thousands of images, random
access to all of them once they are here, so that the order of the images is free, and nothing is
fetched twice in a second epoch if the disk holds it. The folder is bounded: what was not used for
longest goes first.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from diffit.claims import turn
from diffit.data import arrow, remote
from diffit.data.remote import Patience
from diffit.errors import DataError

Kind = Literal["tar", "parquet", "arrow"]


class Place(NamedTuple):
    """Where a shard lies, and what is known of it."""

    address: str
    """A local path, or an address."""
    bytes: int | None = None
    blake2b: str = ""


class Copies:
    """Local files with what the shards of a set hold.

    Args:
        places: of the shards.
        kind: of their files.
        folder: where copies are kept, of this and other sets and processes.
        limit: bytes of the folder, beyond which the copies go that were not used for longest.
        patience: with networks.
        image, label: columns of tables; empty: found by their names.
    """

    def __init__(
        self,
        places: Collection[Place],
        kind: Kind,
        *,
        folder: Path,
        limit: int,
        patience: Patience | None = None,
        image: str = "",
        label: str = "",
    ) -> None:
        self.places = tuple(places)
        self.kind = kind
        self.folder = folder
        self._limit = limit
        self.patience = patience or Patience()
        self._image, self._label = image, label
        self._names: dict[int, str] = {}
        self.in_use: Collection[int] = ()
        """Shards whose copies stay, replaced as a whole by whoever reads them."""

    def needed(self, j: int) -> bool:
        """Whether shard ``j`` is read from a copy, and not where it lies."""
        return self.kind == "parquet" or remote.is_remote(self.places[j].address)

    def bring(self, j: int) -> Path:
        """A local file with shard ``j``, fetched and unpacked if it is not there yet.

        DataError, in one sentence, if it cannot be had.
        """
        place = self.places[j]
        if not self.needed(j):
            return self._check_local(Path(place.address), place)
        path = self.folder / self._name(j)
        if not path.exists():
            self._make_folder()
            # One process fetches; the others of this machine find its copy.
            with turn(path.with_suffix(".claim")):
                if not path.exists():
                    self._clear(path.name)
                    self._fetch(place, path)
            self._trim({j, *self.in_use})
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def gone(self, j: int) -> bool:
        """Whether the copy of a shard has been removed, by this process or another one."""
        return self.needed(j) and not (self.folder / self._name(j)).exists()

    def _trim(self, keep: Collection[int]) -> None:
        """Remove the copies that were not used for longest, beyond the limit, but not ``keep``."""
        kept = {self._names[j] for j in keep if j in self._names}
        found = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):
                    if entry.name.endswith(".shard"):
                        status = entry.stat()
                        found.append((status.st_mtime_ns, status.st_size, entry.name))
        total = sum(size for _, size, _ in found)
        for _, size, name in sorted(found):
            if total <= self._limit:
                return
            if name not in kept:
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink()
                total -= size

    def _name(self, j: int) -> str:
        """File name of a copy: another one for every state of the shard."""
        if j not in self._names:
            place = self.places[j]
            size = place.bytes
            if size is None and remote.is_remote(place.address):
                size = remote.size_of(place.address, patience=self.patience)
            address = place.address
            if not remote.is_remote(address):
                status = _status(Path(address))
                address, size = f"{Path(address).absolute()} {status.st_mtime_ns}", status.st_size
            text = "\n".join([address, str(size), place.blake2b, self._image, self._label])
            self._names[j] = hashlib.blake2b(text.encode(), digest_size=20).hexdigest() + ".shard"
        return self._names[j]

    def _fetch(self, place: Place, path: Path) -> None:
        if not remote.is_remote(place.address):
            self._unpack(Path(place.address), path, place.address)
            return
        to = path.with_suffix(".parquet") if self.kind == "parquet" else path
        remote.fetch(
            place.address, to, size=place.bytes, blake2b=place.blake2b, patience=self.patience
        )
        if self.kind == "parquet":
            self._unpack(to, path, place.address)
            to.unlink(missing_ok=True)

    def _unpack(self, source: Path, path: Path, name: str) -> None:
        arrow.unpack(source, path, name=name, image=self._image, label=self._label)

    def _check_local(self, path: Path, place: Place) -> Path:
        size = _status(path).st_size
        if place.bytes is not None and size != place.bytes:
            raise DataError(
                f"{path} has {size} bytes, but its index says {place.bytes}: it was truncated or "
                "replaced; restore it"
            )
        return path

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be made: {error.strerror}; name another folder with "
                "data.stream.cache"
            ) from None

    def _clear(self, name: str) -> None:
        """Remove what a killed process left of a fetch; the caller holds the claim."""
        for left in self.folder.glob(f".{Path(name).stem}.*.partial"):
            left.unlink(missing_ok=True)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; restore it") from None
