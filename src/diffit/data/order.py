"""In which order shards are read: an order that is random, and yet stays near to few shards.

An epoch shuffles the shards and takes them in windows of a few; the images of a window are shuffled
among each other. So a process needs the shards of one window at a time, and every image comes once
an epoch. All of it follows from (seed, epoch): nothing is kept but the number of the image.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from diffit import draws
from diffit.data.mix import BLOCK, quotas
from diffit.errors import DataError

K = TypeVar("K")
V = TypeVar("V")

KEPT_EPOCHS = 3
KEPT_WINDOWS = 4
"""Shuffled windows that are kept for each lane."""


class _Epoch(NamedTuple):
    """The shards of one epoch.

    Attributes:
        shards: for each lane its shards, in order.
        ends: for each lane, how many images its shards up to each one hold.
        even: images of the shortest lane; so far, lanes take turns.
        rests: images that lanes hold beyond that, summed up.
    """

    shards: list[np.ndarray]
    ends: list[list[int]]
    even: int
    rests: list[int]


class Order:
    """Which example image ``n`` of a run is, where the number of images of each shard is known.

    Args:
        counts: (S,) images of each shard.
        seed: of the order.
        window: shards whose images are shuffled among each other.
        lanes: ways into which the shards of an epoch are dealt. Images take turns among lanes, so
            that with as many lanes as processes, each process needs shards of one lane alone, but
            for the last images of an epoch, when some lanes have run dry.
    """

    def __init__(
        self, counts: Sequence[int] | np.ndarray, *, seed: int, window: int, lanes: int = 1
    ) -> None:
        self._counts = np.asarray(counts, dtype=np.int64)
        if window < 1 or not 1 <= lanes <= len(self._counts) or self._counts.sum() < 1:
            raise ValueError(
                f"an order needs images, window >= 1 and 1 <= lanes <= shards, not window "
                f"{window}, {lanes} lanes, {len(self._counts)} shards"
            )
        self._before = np.cumsum(self._counts) - self._counts
        self._total = int(self._counts.sum())
        self._seed, self._window, self._lanes = seed, window, lanes
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def __call__(self, n: int) -> int:
        """The number of the example in the set."""
        number, place = divmod(n, self._total)
        epoch = self._epoch(number)
        lane, place = self._lane(epoch, place)
        ends = epoch.ends[lane]
        first = bisect_right(ends, place) // self._window * self._window
        before = ends[first - 1] if first else 0
        return int(self._shuffled(number, lane, first)[place - before])

    def _lane(self, epoch: _Epoch, place: int) -> tuple[int, int]:
        """The lane that holds an image of an epoch, and its place there."""
        if place < epoch.even * self._lanes:
            return place % self._lanes, place // self._lanes
        place -= epoch.even * self._lanes
        lane = bisect_right(epoch.rests, place)
        return lane, epoch.even + place - (epoch.rests[lane - 1] if lane else 0)

    def _epoch(self, number: int) -> _Epoch:
        def make() -> _Epoch:
            order = shuffled_shards(self._seed, number, len(self._counts))
            shards = [order[lane :: self._lanes] for lane in range(self._lanes)]
            ends = [np.cumsum(self._counts[part]).tolist() for part in shards]
            sizes = np.array([part[-1] for part in ends])
            even = int(sizes.min())
            return _Epoch(shards, ends, even, np.cumsum(sizes - even).tolist())

        return _remembered(self._epochs, number, make, KEPT_EPOCHS)

    def _shuffled(self, number: int, lane: int, first: int) -> np.ndarray:
        """The examples of a lane's window that begins with its shard ``first``, shuffled."""

        def make() -> np.ndarray:
            shards = self._epoch(number).shards[lane][first : first + self._window]
            examples = np.concatenate(
                [self._before[j] + np.arange(self._counts[j]) for j in shards]
            )
            position = number * len(self._counts) + first * self._lanes + lane
            return examples[
                draws.generator(self._seed, position, "window").permutation(len(examples))
            ]

        return _remembered(self._windows, (number, lane, first), make, KEPT_WINDOWS * self._lanes)


class Position(NamedTuple):
    """How far a walk has come."""

    epoch: int
    window: int
    """Of this epoch, among those of this walker."""
    place: int
    """In that window."""


BEGINNING = Position(0, 0, 0)


class Walk:
    """The images of shards that are counted when they arrive, for one of ``world`` walkers.

    Each walker has every ``world``-th shard of an epoch's order to itself, and goes on to its next
    epoch by itself. A walk that is taken up by the same number of walkers goes on with the very
    next image. By another number, it goes on with the first shard of the epoch that none of them
    had begun: what was left of those begun, `window` for each walker, is passed over.

    Args:
        shards: how many there are.
        count: images of a shard; 0 if it is passed over.
        seed, window: as of an `Order`.
        rank, world: this walker, of how many.
        start: where to begin.
        skip: shards of the first epoch's order that are left out at its beginning.
    """

    def __init__(
        self,
        shards: int,
        count: Callable[[int], int],
        *,
        seed: int,
        window: int,
        rank: int = 0,
        world: int = 1,
        start: Position = BEGINNING,
        skip: tuple[int, int] = (0, 0),
    ) -> None:
        if shards < world:
            raise DataError(
                f"{shards} shards cannot be divided among {world} processes; make more shards, "
                "or an index of them with `diffit data index`"
            )
        self._shards, self._count = shards, count
        self._seed, self._window = seed, window
        self._rank, self._world = rank, world
        self._at, self._skip = start, skip
        self._orders: OrderedDict[int, list[int]] = OrderedDict()
        self._mixed: tuple[Position | None, list[tuple[int, int]]] = (None, [])

    @property
    def at(self) -> Position:
        """Where the next image stands."""
        return self._at

    def entered(self) -> bool:
        """Whether the next image is of shards that have been counted already."""
        window, examples = self._mixed
        return window == self._at._replace(place=0) and self._at.place < len(examples)

    def coming(self, windows: int = 2) -> list[int]:
        """Shards of the window at which the walk stands, and of the following ones."""
        found: list[int] = []
        epoch, window, _ = self._at
        for _ in range(windows):
            part = self._part(epoch, window)
            if not part:
                epoch, window = epoch + 1, 0
                part = self._part(epoch, window)
            found += part
            window += 1
        return found

    def __next__(self) -> tuple[int, int]:
        """The next image: (shard, place in it)."""
        passed = 0
        while not self.entered():
            epoch, window, place = self._at
            part = self._part(epoch, window)
            self._mixed = (Position(epoch, window, 0), self._mix(epoch, part))
            if place < len(self._mixed[1]):
                break
            passed += len(part) if not self._mixed[1] else 0
            if passed > self._shards:
                raise DataError("none of the shards of this process holds an image; name others")
            self._at = Position(epoch, window + 1, 0) if part else Position(epoch + 1, 0, 0)
        example = self._mixed[1][self._at.place]
        self._at = self._at._replace(place=self._at.place + 1)
        return example

    def _part(self, epoch: int, window: int) -> list[int]:
        """The shards of one of this walker's windows; none behind the last one."""

        def make() -> list[int]:
            order = shuffled_shards(self._seed, epoch, self._shards)
            first = self._skip[1] if epoch == self._skip[0] else 0
            return [int(j) for j in order[first:][self._rank :: self._world]]

        own = _remembered(self._orders, epoch, make, KEPT_EPOCHS)
        return list(own[window * self._window : (window + 1) * self._window])

    def _mix(self, epoch: int, part: list[int]) -> list[tuple[int, int]]:
        examples = [(j, i) for j in part for i in range(self._count(j))]
        if not examples:
            return []
        # No other window of this epoch has the same first shard.
        generator = draws.generator(self._seed, epoch * self._shards + part[0], "window")
        return [examples[k] for k in generator.permutation(len(examples))]


class Blend:
    """Which source image ``n`` of a run comes from, and which image of that source it is.

    Args:
        weights: of the sources.
        seed: of the order in which they take turns.
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        self._quotas, self._seed = quotas(weights), seed
        self._block = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def __call__(self, n: int) -> tuple[int, int]:
        """(source, number in that source's own order)."""
        if len(self._quotas) == 1:
            return 0, n
        number, place = divmod(n, BLOCK)
        if number != self._block[0]:
            self._block = (number, *self._deal(number))
        source = int(self._block[1][place])
        return source, number * int(self._quotas[source]) + int(self._block[2][place])

    def _deal(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each image in a block its source, and how many of that source come before it."""
        sources = np.repeat(np.arange(len(self._quotas)), self._quotas)
        sources = sources[draws.generator(self._seed, number, "mix").permutation(BLOCK)]
        earlier = np.empty(BLOCK, np.int64)
        for source, quota in enumerate(self._quotas):
            earlier[sources == source] = np.arange(quota)
        return sources, earlier


def shuffled_shards(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the shards in an epoch."""
    return draws.generator(seed, epoch, "shards").permutation(count)


def _remembered(store: OrderedDict[K, V], key: K, make: Callable[[], V], most: int) -> V:
    """What ``make`` gave for a key, of the ``most`` asked for last."""
    if key not in store:
        store[key] = make()
        if len(store) > most:
            store.popitem(last=False)
    store.move_to_end(key)
    return store[key]
