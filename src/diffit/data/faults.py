"""What a stream passes over, and where it goes on after an interruption."""

from collections.abc import Sequence
from typing import Any

from diffit.data.order import BEGINNING, Position
from diffit.data.stream_config import StreamConfig
from diffit.errors import DataError


class Faults:
    """What could not be read, within the limits that are allowed.

    Args:
        config: the limits.
        states: of the processes before, whose counts go on.
    """

    def __init__(self, config: StreamConfig, states: Sequence[dict[str, Any]] = ()) -> None:
        self._config = config
        self.images: set[tuple[int, int, int]] = set()
        self.shards: set[tuple[int, int]] = set()
        for state in states:
            self.images |= {(int(a), int(b), int(c)) for a, b, c in state["bad_images"]}
        self._notes: list[str] = []

    @property
    def state(self) -> dict[str, Any]:
        """What is remembered in a checkpoint: a shard that was away may be back."""
        return {"bad_images": sorted(map(list, self.images))}

    def image(self, key: tuple[int, int, int], error: DataError) -> None:
        """Pass over an image; DataError beyond the limit."""
        limit = self._config.max_bad
        self._pass_over("image", len(self.images) + 1, limit, "data.stream.max_bad", error)
        self.images.add(key)

    def shard(self, key: tuple[int, int], error: DataError) -> None:
        """Pass over a shard; DataError beyond the limit."""
        limit = self._config.max_bad_shards
        self._pass_over("shard", len(self.shards) + 1, limit, "data.stream.max_bad_shards", error)
        self.shards.add(key)

    def take(self) -> list[str]:
        """The sentences since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _pass_over(self, what: str, count: int, limit: int, name: str, error: DataError) -> None:
        if count > limit:
            told = (
                f"{limit} {what}{'s' if limit > 1 else ''} passed over already; " if limit else ""
            )
            raise DataError(
                f"{error} ({told}to pass over more, raise {name} above {limit})"
            ) from None
        self._notes.append(f"passed over {what} {count} of {limit}: {error}")


def resume(
    states: Sequence[dict[str, Any]], source: int, rank: int, world: int, window: int
) -> tuple[Position, tuple[int, int]]:
    """Where a walk goes on: its position, and (epoch, shards of it that are left out)."""
    walks = {s["rank"]: s["walks"][source] for s in states if s["walks"][source] is not None}
    if not walks:
        return BEGINNING, (0, 0)
    before, skip = states[0]["world"], tuple(states[0]["skips"][source])
    if before == world and rank in walks:
        return Position(*walks[rank]), skip
    epoch = max(walk[0] for walk in walks.values())
    begun = max(walk[1] + (walk[2] > 0) for walk in walks.values() if walk[0] == epoch)
    return Position(epoch, 0, 0), (epoch, begun * window * before + skip[1] * (skip[0] == epoch))
