"""A data set as tar shards with an index: what training reads from disks and from far away."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from diffit import draws
from diffit.data import open_images
from diffit.data.example import Dataset, Follow
from diffit.data.images import Background, to_png, write_atomic
from diffit.data.latent_writer import begin, checksum
from diffit.data.pack import Packed, digest_of
from diffit.data.shard_index import INDEX, Shard, ShardIndex, to_json
from diffit.data.tar import TarShard
from diffit.errors import DataError

MAX_IMAGES = 1 << 16
"""Images of a shard, however small they are."""


class Note(NamedTuple):
    """What is remembered of a finished shard while others are being made."""

    shard: Shard
    next: int
    """The first place in the order that it does not cover."""
    left_out: tuple[str, ...]


def pack_shards(
    source: str,
    out: Path,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    labels: bool = True,
    background: Background = "white",
    skip_unreadable: bool = False,
    shuffle: bool = True,
    shard_mib: int = 256,
    follow: Follow = iter,
) -> Packed:
    """Write ``source`` as shards in the new folder ``out``; an interrupted call can be repeated.

    Each shard appears whole or not at all, in `OUT.partial`, which gets its name when the index is
    written and all shards have been read back. The bytes depend on the images and the settings.

    Args:
        source, size, channels, labels, background: as of `pack`.
        out: a free name.
        skip_unreadable: leave out what cannot be read.
        shuffle: mix the images. Training mixes those of some shards alone, so that a set that is
            sorted by class would come class by class.
        shard_mib: largest shard in MiB; a larger image has one for itself.
        follow: shows progress.
    """
    dataset = open_images(
        source, size=size, channels=channels, labels=labels, background=background, strict=False
    )
    plan = {
        "source": str(Path(source).absolute()) if "://" not in source else source,
        "size": size,
        "channels": channels,
        "labels": labels,
        "background": background,
        "shuffle": shuffle,
        "shard_mib": shard_mib,
        "images": len(dataset),
        "names": digest_of(dataset),
    }
    partial = begin(out, plan)
    notes = finished(partial)
    order = range(len(dataset)) if not shuffle else _shuffled(len(dataset))
    places = iter(follow(range(notes[-1].next if notes else 0, len(dataset))))
    try:
        writer = Writer(dataset, order, partial, places, shard_mib, skip_unreadable)
        notes += writer.shards(len(notes))
        _finish(partial, dataset, notes, source)
        partial.replace(out)
    except OSError as error:
        raise DataError(
            f"{partial} cannot be written: {error.strerror}; the same command goes on from there"
        ) from None
    left_out = tuple(reason for note in notes for reason in note.left_out)
    shards = [note.shard for note in notes]
    return Packed(sum(s.images for s in shards), sum(s.bytes for s in shards), left_out)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


def finished(partial: Path) -> list[Note]:
    """The shards that an interrupted call has left whole, up to the first that is not."""
    notes: list[Note] = []
    while True:
        path = partial / shard_name(len(notes))
        try:
            shard, following, left_out = json.loads(path.with_suffix(".json").read_bytes())
            note = Note(Shard(**shard), int(following), tuple(left_out))
            if checksum(path) != note.shard.blake2b:
                return notes
        except (OSError, ValueError, TypeError):
            return notes
        notes.append(note)


def _shuffled(count: int) -> Sequence[int]:
    order: Sequence[int] = draws.generator(0, 0, "pack").permutation(count).tolist()
    return order


class Writer:
    """Images into shards, one after the other.

    Args:
        dataset: the images.
        order: their numbers, in the order in which they are written.
        folder: where shards are written.
        places: those in the order that are still to be written.
        shard_mib: largest shard.
        skip: whether images that cannot be read are left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Sequence[int],
        folder: Path,
        places: Iterator[int],
        shard_mib: int,
        skip: bool,
    ) -> None:
        self._dataset, self._order, self._folder = dataset, order, folder
        self._places, self._most, self._skip = places, shard_mib << 20, skip
        self._left_out: list[str] = []
        self._next = self._read()

    def shards(self, number: int) -> Iterator[Note]:
        """Write the shards from ``number`` on."""
        while self._next is not None:
            path = self._folder / shard_name(number)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                count = self._fill(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            size = path.stat().st_size
            shard = Shard(file=path.name, images=count, bytes=size, blake2b=checksum(path))
            following = self._next[0] if self._next else len(self._order)
            note = Note(shard, following, tuple(self._left_out))
            self._left_out = []
            _write_note(path, note)
            yield note
            number += 1

    def _fill(self, file: IO[bytes]) -> int:
        """Write images until the shard is full, or all are written; how many."""
        count = 0
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            while self._next is not None:
                place, data = self._next
                # What follows an image: its label, headers, and the padding of the last record.
                size = tar.offset + len(data) + 2 * tarfile.RECORDSIZE
                full = size > self._most or count == MAX_IMAGES
                if count and full:
                    break
                number = self._order[place]
                _add(tar, number, data, self._dataset.label(number))
                count += 1
                self._next = self._read()
        return count

    def _read(self) -> tuple[int, bytes] | None:
        """The next place with an image that can be read, and its PNG; None behind the last."""
        for place in self._places:
            try:
                return place, to_png(self._dataset[self._order[place]].image)
            except DataError as error:
                if not self._skip:
                    raise DataError(f"{error} (or leave such out: --skip-unreadable)") from None
                self._left_out.append(str(error))
        return None


def _add(tar: tarfile.TarFile, number: int, image: bytes, label: int | None) -> None:
    members = [(f"{number:09d}.png", image)]
    if label is not None:
        members.append((f"{number:09d}.cls", str(label).encode()))
    for name, data in members:
        info = tarfile.TarInfo(name)  # its default date and owner make equal sets equal files
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _write_note(path: Path, note: Note) -> None:
    content: list[Any] = [note.shard.model_dump(mode="json"), note.next, note.left_out]
    write_atomic(path.with_suffix(".json"), json.dumps(content).encode())


def _finish(partial: Path, dataset: Dataset, notes: list[Note], source: str) -> None:
    """Write the index once every shard has been read back."""
    shards = tuple(note.shard for note in notes if note.shard.images)
    if not shards:
        raise DataError("none of the images could be read; `diffit data inspect` says why")
    for shard in shards:
        if len(TarShard(partial / shard.file)) != shard.images:
            raise DataError(f"{partial / shard.file} was not written as it should; check the disk")
    index = ShardIndex(
        images=sum(shard.images for shard in shards),
        shape=dataset.shape,
        classes=dataset.classes,
        shards=shards,
        source=f"packed from {source}",
    )
    write_atomic(partial / INDEX, to_json(index))
    kept = {INDEX, *(shard.file for shard in shards)}
    for path in partial.iterdir():
        if path.name not in kept:
            path.unlink()
