"""Endless batches from shards and mixtures: fetched, shuffled and decoded while others are used.

Where the number of images in each shard is known, image n of a run is a function of (seed, n), for
any number of processes, and a resumed run goes on with the very next image. Where it is not, each
process walks through shards of its own, and `state` says how far it has come.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from diffit import draws
from diffit.data.example import Example
from diffit.data.faults import Faults, resume
from diffit.data.fetcher import Fetcher
from diffit.data.loader import BATCHES_AHEAD, Batch
from diffit.data.mix import Mixture
from diffit.data.order import Blend, Order, Position, Walk
from diffit.data.shards import ShardSet
from diffit.data.stream_config import StreamConfig
from diffit.data.workers import Decoded, Workers, read
from diffit.errors import DataError

TRANSFERS = 4
"""Shards that a process fetches at a time."""
HISTORY = 64
"""Batches whose positions are remembered."""
LOOK_AHEAD = 1 << 16
"""Images ahead of which their shards are fetched, at most."""


class Place(NamedTuple):
    """An image to come: its number in the run, its source, and where in the source it is."""

    number: int
    source: int
    key: int | tuple[int, int]
    shard: int | None
    """Which shard of the source holds it; None where that has none."""
    after: Position | None
    """Where the walk of the source stands behind it; None where there is none."""


class StreamLoader:
    """Iterates for ever over batches of a set of shards, or of a mixture.

    Args:
        dataset: what to read.
        batch: images in a batch, of all processes together.
        seed: of the order, the mixture and the flips.
        start: number of the first image: how many the run has seen before.
        flip: mirror each image with probability 1/2.
        workers: processes that decode; 0 decodes here, when a batch is asked for.
        rank, world: this process takes every ``world``-th image of a batch, from image ``rank`` on.
        states: of the processes that saw the images before ``start``, each as `state` gave it.
        config: how shards are read.
    """

    def __init__(
        self,
        dataset: ShardSet | Mixture,
        *,
        batch: int,
        seed: int,
        start: int = 0,
        flip: bool = False,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        states: Sequence[dict[str, Any]] = (),
        config: StreamConfig = StreamConfig(),  # noqa: B008  (frozen)
    ) -> None:
        if not 0 <= rank < world <= batch or start < 0:
            raise ValueError(
                f"a loader needs rank < world <= batch and start >= 0, not rank {rank} of {world}, "
                f"batch {batch}, start {start}"
            )
        self._mixture = (
            dataset if isinstance(dataset, Mixture) else Mixture([dataset], [1.0], [dataset.path])
        )
        self._batch, self._seed, self._flip = batch, seed, flip
        self._rank, self._world = rank, world
        self._config = config
        self._seen = start
        self._numbers = self._own_numbers(start)
        self._blend = Blend(self._mixture.weights, seed=seed)
        self._fetcher = Fetcher(self._bring, threads=TRANSFERS)
        self._faults = Faults(config, states)
        self._skips = [(0, 0)] * len(self._mixture.sources)
        self._orders = [self._order(k, states) for k in range(len(self._mixture.sources))]
        self._after: list[Position | None] = [
            order.at if isinstance(order, Walk) else None for order in self._orders
        ]
        self._history = deque([(start, tuple(self._after))], maxlen=HISTORY)
        self._places: deque[Place] = deque()
        self._needed: Counter[tuple[int, int]] = Counter()
        self._workers = Workers(self._mixture, workers) if workers else None
        self._depth = workers * BATCHES_AHEAD
        self._horizon = self._find_horizon()
        self._ahead: deque[tuple[list[Place], Future[Decoded] | None]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while not self._ahead or (len(self._ahead) <= self._depth and self._at_hand()):
            self._ahead.append(self._begin())
        places, reading = self._ahead.popleft()
        batch = self._finish(places, reading)
        for place in places:
            if place.after is not None:
                self._after[place.source] = place.after
        self._seen += self._batch
        self._history.append((self._seen, tuple(self._after)))
        self._release(places)
        return batch

    def state(self, seen: int | None = None) -> dict[str, Any]:
        """Where this process stands; for JSON.

        Args:
            seen: images that the run has seen, where batches that it has not trained on yet were
                asked for already; at most `HISTORY` of them. None: behind the last batch.
        """
        walks = next((after for n, after in tuple(self._history) if n == seen), tuple(self._after))
        return {
            "rank": self._rank,
            "world": self._world,
            "walks": [None if after is None else list(after) for after in walks],
            "skips": [list(skip) for skip in self._skips],
            **self._faults.state,
        }

    def notes(self) -> list[str]:
        """What was passed over since the last call, a sentence for each."""
        return self._faults.take()

    def close(self) -> None:
        """End workers and transfers; nothing can be iterated after that."""
        if self._workers is not None:
            self._workers.close()
        self._fetcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def index(self, n: int) -> int | None:
        """Which example of the set image ``n`` of the run is; None where only a walk could tell."""
        source, m = self._blend(n)
        order = self._orders[source]
        if isinstance(order, Walk):
            return None
        return sum(len(s) for s in self._mixture.sources[:source]) + order(m)

    def _find_horizon(self) -> int:
        """Images ahead of which shards are fetched: 0 where none has to be."""
        sets = [data for data in self._mixture.sources if isinstance(data, ShardSet)]
        if not any(data.copies.needed(0) for data in sets):
            return 0
        counts = [data.counts for data in sets]
        known = [LOOK_AHEAD if count is None else int(count.sum()) for count in counts]
        return min(LOOK_AHEAD, sum(known))

    def _order(self, source: int, states: Sequence[dict[str, Any]]) -> Order | Walk:
        data, config = self._mixture.sources[source], self._config
        # Another one for each source, or sets of equal shape would run in step.
        seed = self._seed + (source << 40)
        if not isinstance(data, ShardSet):
            return Order([len(data)], seed=seed, window=1)
        if data.counts is not None:
            if config.lanes > data.shards:
                raise DataError(
                    f"data.stream.lanes is {config.lanes}, but {data.path} has {data.shards} "
                    "shards; lower it, or make more shards"
                )
            return Order(data.counts, seed=seed, window=config.window, lanes=config.lanes)
        start, skip = resume(states, source, self._rank, self._world, config.window)
        self._skips[source] = skip
        return Walk(
            data.shards,
            lambda shard: self._count(source, shard),
            seed=seed,
            window=config.window,
            rank=self._rank,
            world=self._world,
            start=start,
            skip=skip,
        )

    def _own_numbers(self, start: int) -> Iterator[int]:
        while True:
            yield from range(start + self._rank, start + self._batch, self._world)
            start += self._batch

    def _share(self) -> int:
        """Images of a batch that are this process's."""
        return len(range(self._rank, self._batch, self._world))

    def _at_hand(self) -> bool:
        """Whether the next batch can be begun without waiting for a transfer."""
        self._look_ahead(self._share())
        coming = list(islice(self._places, self._share()))
        return len(coming) == self._share() and all(
            future.done() for place in coming if (future := self._transfer(place)) is not None
        )

    def _begin(self) -> tuple[list[Place], "Future[Decoded] | None"]:
        """Ask for the next batch."""
        while len(self._places) < self._share():
            self._look()
        places = [self._places.popleft() for _ in range(self._share())]
        self._look_ahead(self._horizon)
        reading = None
        if self._workers is not None and self._wait(places):
            reading = self._workers.start([(place.source, place.key) for place in places])
        return places, reading

    def _look_ahead(self, images: int) -> None:
        """Look at images to come, as long as that waits for nothing and not too many shards."""
        lanes = -(-self._config.lanes // self._world)
        most = 2 * self._config.window * lanes * len(self._orders)
        while len(self._places) < images and len(self._needed) < max(most, 2):
            if not all(order.entered() for order in self._orders if isinstance(order, Walk)):
                return
            self._look()

    def _look(self) -> None:
        """Find out what the next image is, and have its shard fetched."""
        number = next(self._numbers)
        source, m = self._blend(number)
        order = self._orders[source]
        if isinstance(order, Walk):
            if not order.entered():
                for shard in order.coming():
                    self._ask(source, shard)
            key: int | tuple[int, int] = next(order)
            after = order.at
        else:
            key, after = order(m), None
        data = self._mixture.sources[source]
        of = data.locate(key)[0] if isinstance(data, ShardSet) else None
        self._places.append(Place(number, source, key, of, after))
        if of is not None:
            self._needed[source, of] += 1
            if self._needed[source, of] == 1:
                self._ask(source, of)
                self._keep_copies(source)

    def _ask(self, source: int, shard: int) -> "Future[Any] | None":
        data = self._mixture.sources[source]
        if not isinstance(data, ShardSet) or not data.copies.needed(shard):
            return None
        return self._fetcher.ask((source, shard))

    def _transfer(self, place: Place) -> "Future[Any] | None":
        return None if place.shard is None else self._ask(place.source, place.shard)

    def _bring(self, key: tuple[int, int]) -> None:
        """In a thread: have a shard fetched."""
        source, shard = key
        data = self._mixture.sources[source]
        if isinstance(data, ShardSet):
            data.copies.bring(shard)

    def _wait(self, places: Sequence[Place]) -> bool:
        """Wait for the shards of a batch; whether all of them have come."""
        for place in places:
            future = self._transfer(place)
            if future is not None and future.exception() is not None:
                return False
        return True

    def _count(self, source: int, shard: int) -> int:
        """Images of a shard, once it is here; 0 if it is passed over."""
        return self._open(source, shard) or 0

    def _open(self, source: int, shard: int) -> int | None:
        """Images of a shard that can be read; None if it cannot be."""
        data = self._mixture.sources[source]
        if not isinstance(data, ShardSet) or (source, shard) in self._faults.shards:
            return None
        try:
            future = self._ask(source, shard)
            if future is not None:
                future.result()
            return len(data.open(shard))
        except DataError as error:
            self._fetcher.forget((source, shard))
            self._faults.shard((source, shard), error)
            return None

    def _finish(self, places: Sequence[Place], reading: "Future[Decoded] | None") -> Batch:
        decoded = self._quickly(places, reading) or self._carefully(places)
        numbers = [place.number for place in places]
        image = torch.from_numpy(decoded.images)
        if self._flip:
            mirrored = draws.integers(self._seed, numbers, "flip", 2).bool()
            image[mirrored] = image[mirrored].flip(-1)
        label = None if decoded.labels is None else torch.from_numpy(decoded.labels)
        return Batch(image, label, torch.tensor(numbers))

    def _quickly(
        self, places: Sequence[Place], reading: "Future[Decoded] | None"
    ) -> Decoded | None:
        """The images of a batch; None if something in it cannot be read."""
        try:
            if reading is not None and self._workers is not None:
                return self._workers.finish(reading)
            keys = [(place.source, place.key) for place in places]
            return read(self._mixture, keys) if self._wait(places) else None
        except DataError:
            return None

    def _carefully(self, places: Sequence[Place]) -> Decoded:
        """The images of a batch one by one, so that bad ones can be passed over."""
        examples = [self._example(place) for place in places]
        images = np.stack([example.image for example in examples])
        if not self._mixture.classes:
            return Decoded(images, None)
        return Decoded(images, np.array([example.label for example in examples], dtype=np.int64))

    def _example(self, place: Place) -> Example:
        """An image, or in place of a bad one the next good one of its shard."""
        data = self._mixture.sources[place.source]
        if isinstance(data, ShardSet):
            shard, inner, count = self._stand_in(place.source, data, *data.locate(place.key))
        elif isinstance(place.key, int):
            shard, inner, count = 0, place.key, len(data)
        for k in range(count):
            at = (inner + k) % count
            key = (place.source, shard, at)
            if key in self._faults.images:
                continue
            try:
                found: Example = data[(shard, at) if isinstance(data, ShardSet) else at]  # type: ignore[index]
                return found
            except DataError as error:
                self._faults.image(key, error)
        raise DataError(f"none of the {count} images beside image {place.number} can be read")

    def _stand_in(
        self, source: int, data: ShardSet, shard: int, inner: int
    ) -> tuple[int, int, int]:
        """The shard itself, or the next one that can be read: (shard, place, images)."""
        for k in range(data.shards):
            other = (shard + k) % data.shards
            count = self._open(source, other)
            if count:
                return other, inner % count, count
        raise DataError(f"none of the shards of {data.path} can be read; see whether it is there")

    def _release(self, places: Sequence[Place]) -> None:
        """Let go of the shards of a batch that nothing looked at needs."""
        gone = set()
        for place in places:
            if place.shard is not None:
                key = (place.source, place.shard)
                self._needed[key] -= 1
                if not self._needed[key]:
                    del self._needed[key]
                    gone.add(key)
        for key in gone:
            self._fetcher.forget(key)
        for source in {source for source, _ in gone}:
            self._keep_copies(source)

    def _keep_copies(self, source: int) -> None:
        """Tell a source which of its copies must stay."""
        data = self._mixture.sources[source]
        if isinstance(data, ShardSet):
            data.copies.in_use = frozenset(j for k, j in self._needed if k == source)
