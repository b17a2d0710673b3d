"""Sets of shards: tar, parquet or Arrow files with some thousand images each, here or far away."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffit.data import arrow, remote
from diffit.data.arrow import ArrowShard
from diffit.data.copies import Copies, Kind, Place
from diffit.data.crop import center_crop
from diffit.data.example import Example
from diffit.data.images import Background, decode, to_array
from diffit.data.shard_index import INDEX, ShardIndex
from diffit.data.shard_paths import find_shards, patience_of
from diffit.data.stream_config import StreamConfig
from diffit.data.tar import BAD_LABEL, NO_LABEL, TarShard
from diffit.errors import DataError

OPEN_SHARDS = 64
"""Whose headers are kept in memory at a time."""
PROBES = 16
"""How many images of the first shard are looked at where no index tells what they are."""


class ShardSet:
    """Images in shards, as a data set.

    Where each shard's number of images is known, from an index or since the files are here, it is a
    `Dataset`: example i is image i of all shards in their order. Else `counts` is None, it has no
    length, and examples are asked for as (shard, place in it).

    Args:
        path: what the user calls the set.
        places: of the shards, in order.
        kind: of their files.
        index: what is known of them.
        size, channels, labels, background: as of `open_dataset`.
        config: how shards are read.

    Attributes:
        counts: (S,) int64 images of each shard, None if they are not known.
        classes: names of the labels.
        shape: (C, H, W) of every image.
    """

    def __init__(
        self,
        path: str,
        places: Sequence[Place],
        kind: Kind,
        *,
        index: ShardIndex | None = None,
        size: int | None = None,
        channels: Literal[1, 3] | None = None,
        labels: bool = True,
        background: Background = "white",
        config: StreamConfig = StreamConfig(),  # noqa: B008  (frozen)
    ) -> None:
        self.path, self.kind, self.index, self.config = path, kind, index, config
        self._size, self._channels, self._background = size, channels, background
        self.copies = Copies(
            places,
            kind,
            folder=Path(config.cache).expanduser() if config.cache else _default_cache(),
            limit=int(config.cache_gib * 2**30),
            patience=patience_of(config),
            image=config.image_column,
            label=config.label_column,
        )
        self._open: OrderedDict[int, TarShard | ArrowShard] = OrderedDict()
        self.counts = self._count()
        self._ends: list[int] = [] if self.counts is None else np.cumsum(self.counts).tolist()
        if self.counts is not None and self._ends[-1] == 0:
            raise DataError(f"{path} holds no images; name shards that do")
        self.classes = self._find_classes() if labels else ()
        self.shape = self._find_shape()

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self.copies.places)

    def __len__(self) -> int:
        if self.counts is None:
            raise DataError(
                f"{self.path} has no {INDEX} that tells how many images it holds; make one with "
                "`diffit data index`"
            )
        return self._ends[-1]

    def __getitem__(self, i: int | tuple[int, int]) -> Example:
        shard, place = self.locate(i)
        try:
            return self._read(shard, place)
        except DataError:
            if not self.copies.gone(shard):
                raise
            self._open.pop(shard, None)
            return self._read(shard, place)

    def _read(self, shard: int, place: int) -> Example:
        opened = self.open(shard)
        shown, label = opened.shown(place), self._label(opened, place)
        image = decode(opened.read(place), name=shown, background=self._background)
        if self._size is not None:
            image = center_crop(image, self._size, name=shown)
        channels, height, width = self.shape
        if self._channels is None and channels == 1 and image.mode != "L":
            raise DataError(f"{shown} has colour, the first images are grey; set data.channels: 3")
        if image.size != (width, height):
            raise DataError(
                f"{shown} is {image.width} x {image.height}, the set is {width} x {height}; set "
                "data.size to crop and resize all"
            )
        return Example(to_array(image, channels), label)

    def label(self, i: int) -> int | None:
        """The label of example i, without decoding its image."""
        shard, place = self.locate(i)
        return self._label(self.open(shard), place)

    def locate(self, i: int | tuple[int, int]) -> tuple[int, int]:
        """The shard of example i, and its place there."""
        if isinstance(i, tuple):
            return i
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        shard = bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def open(self, shard: int) -> TarShard | ArrowShard:
        """A shard, fetched if need be; DataError if it cannot be had."""
        if shard not in self._open:
            path, name = self.copies.bring(shard), self.copies.places[shard].address
            if self.kind == "tar":
                self._open[shard] = TarShard(path, name=name)
            else:
                columns = {"image": self.config.image_column, "label": self.config.label_column}
                self._open[shard] = ArrowShard(path, name=name, **columns)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
            self._check_count(shard)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _check_count(self, shard: int) -> None:
        found = len(self._open[shard])
        if self.index is not None and found != self.index.shards[shard].images:
            name = self._open.pop(shard).name
            raise DataError(
                f"{name} holds {found} images, but its index says "
                f"{self.index.shards[shard].images}: it was replaced; restore it"
            )

    def _label(self, opened: TarShard | ArrowShard, place: int) -> int | None:
        if not self.classes:
            return None
        label = opened.label(place)
        if 0 <= label < len(self.classes):
            return label
        told = {NO_LABEL: "no label", BAD_LABEL: "a label that is no whole number from 0 on"}
        raise DataError(
            f"{opened.shown(place)} has {told.get(label, f'the label {label}')}, and the set has "
            f"{len(self.classes)} classes; mend it, or take the images alone: data.labels: false"
        )

    def _count(self) -> np.ndarray | None:
        if self.index is not None:
            return np.array([shard.images for shard in self.index.shards], dtype=np.int64)
        places = self.copies.places
        if any(remote.is_remote(place.address) for place in places):
            return None
        if self.kind == "parquet":
            counts = [arrow.count_rows(Path(place.address)) for place in places]
        else:
            counts = [len(self.open(j)) for j in range(len(places))]
        return np.array(counts, dtype=np.int64)

    def _find_classes(self) -> tuple[str, ...]:
        if self.index is not None:
            return self.index.classes
        if self.config.classes is not None:
            return tuple(map(str, range(self.config.classes)))
        if self.kind != "tar":
            return self._classes_of_table()
        everything = range(self.shards) if self.counts is not None else range(1)
        highest = max(self._highest_label(self.open(j)) for j in everything)
        if highest == NO_LABEL:
            return ()
        if self.counts is None:
            raise DataError(
                f"{self.path} has labels, but no {INDEX} that tells how many classes; set "
                "data.stream.classes, or data.labels: false"
            )
        return tuple(map(str, range(highest + 1)))

    def named_classes(self, shard: int) -> tuple[str, ...]:
        """Names of the labels, where the files of a shard tell them."""
        opened = self.open(shard)
        return opened.columns.classes if isinstance(opened, ArrowShard) else ()

    def _classes_of_table(self) -> tuple[str, ...]:
        opened = self.open(0)
        columns = opened.columns  # type: ignore[union-attr]
        if columns.classes or columns.label is None:
            return columns.classes
        raise DataError(
            f"{self.path} has labels in the column {columns.label!r} without the names of their "
            "classes; set data.stream.classes to how many there are, or data.labels: false"
        )

    @staticmethod
    def _highest_label(opened: TarShard | ArrowShard) -> int:
        return max((opened.label(i) for i in range(len(opened))), default=NO_LABEL)

    def _find_shape(self) -> tuple[int, int, int]:
        size, channels = self._size, self._channels
        known = self.index.shape if self.index else None
        if known is None and (size is None or channels is None):
            known = self._probe()
        of_set = known or (channels or 0, size or 0, size or 0)
        return channels or of_set[0], size or of_set[1], size or of_set[2]

    def _probe(self) -> tuple[int, int, int]:
        """(C, H, W) by the first images that can be read."""
        opened, looks = self.open(self._first_with_images()), []
        for i in range(len(opened)):
            try:
                image = decode(opened.read(i), name=opened.shown(i))
            except DataError as error:
                refusal = error
                continue
            looks.append(image)
            if len(looks) == PROBES:
                break
        if not looks:
            raise refusal
        width, height = looks[0].size
        return (3 if any(image.mode != "L" for image in looks) else 1), height, width

    def _first_with_images(self) -> int:
        return next(j for j in range(self.shards) if len(self.open(j)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def open_shards(
    path: str,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    labels: bool = True,
    background: Background = "white",
    config: StreamConfig = StreamConfig(),  # noqa: B008  (frozen)
) -> ShardSet:
    """The set of shards at ``path``; DataError if there is none, or if it is unclear.

    Args:
        path: a folder, a file of shards or an index, or an address of one; `{000..099}`, `*` and
            `?` stand for many.
        size, channels, labels, background: as of `open_dataset`.
        config: how shards are read.
    """
    found = find_shards(path, config)
    classes = config.classes
    if found.known is not None and classes not in (None, len(found.known.classes)):
        raise DataError(
            f"data.stream.classes is {classes}, but the index of {path} has "
            f"{len(found.known.classes)}; leave it out"
        )
    return ShardSet(
        path,
        found.places,
        found.kind,
        index=found.known,
        size=size,
        channels=channels,
        labels=labels,
        background=background,
        config=config,
    )


def _default_cache() -> Path:
    from diffit.fetch import cache_folder

    return cache_folder() / "shards"
