"""The order of images in shards: every image once an epoch, from few shards at a time."""

from collections import Counter

import numpy as np
import pytest

from diffit.data.mix import quotas
from diffit.data.order import BEGINNING, Blend, Order, Position, Walk
from diffit.errors import DataError

COUNTS = [5, 0, 9, 1, 7, 7, 3, 12, 4, 6]
TOTAL = sum(COUNTS)
SHARD_OF = np.repeat(np.arange(len(COUNTS)), COUNTS)


@pytest.mark.parametrize("lanes", [1, 2, 3, 10])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_every_epoch_holds_each_image_once(lanes: int, window: int) -> None:
    order = Order(COUNTS, seed=3, window=window, lanes=lanes)
    for epoch in range(4):
        found = [order(n) for n in range(epoch * TOTAL, (epoch + 1) * TOTAL)]
        assert sorted(found) == list(range(TOTAL))


def test_it_is_a_function_of_the_number_alone() -> None:
    order = Order(COUNTS, seed=3, window=2, lanes=2)
    forwards = [order(n) for n in range(5 * TOTAL)]
    again = Order(COUNTS, seed=3, window=2, lanes=2)
    assert [again(n) for n in reversed(range(5 * TOTAL))] == forwards[::-1]
    assert [Order(COUNTS, seed=4, window=2, lanes=2)(n) for n in range(TOTAL)] != forwards[:TOTAL]
    assert forwards[:TOTAL] != forwards[TOTAL : 2 * TOTAL]


def test_a_window_holds_few_shards_and_mixes_them() -> None:
    order = Order([50] * 12, seed=1, window=3)
    for first in range(0, 600, 150):
        window = [order(n) // 50 for n in range(first, first + 150)]
        assert len(set(window)) == 3
        assert len(set(window[:20])) == 3


def test_processes_of_their_own_lanes_need_shards_of_their_own() -> None:
    order = Order([20] * 16, seed=5, window=2, lanes=4)
    needed = [{order(n) // 20 for n in range(320) if n % 4 == rank} for rank in range(4)]
    assert [len(shards) for shards in needed] == [4, 4, 4, 4]
    assert len(set.union(*needed)) == 16


@pytest.mark.parametrize(("window", "lanes"), [(0, 1), (1, 0), (1, 11)])
def test_orders_that_make_no_sense_are_refused(window: int, lanes: int) -> None:
    with pytest.raises(ValueError, match="an order needs"):
        Order(COUNTS, seed=0, window=window, lanes=lanes)


def walk(rank: int = 0, world: int = 1, **keywords) -> Walk:
    return Walk(
        len(COUNTS), COUNTS.__getitem__, seed=3, window=2, rank=rank, world=world, **keywords
    )


def test_walkers_together_see_every_image_once() -> None:
    for world in (1, 2, 3):
        seen: Counter = Counter()
        for rank in range(world):
            one = walk(rank, world)
            while one.at.epoch < 1:
                example = next(one)
                if one.at.epoch < 1:
                    seen[example] += 1
        # The last image of each walker's epoch is followed by the first of the next one.
        assert set(seen.values()) == {1}
        assert len(seen) == TOTAL


def test_a_walk_goes_on_from_any_position() -> None:
    one, seen, positions = walk(1, 2), [], []
    for _ in range(3 * TOTAL + 5):
        positions.append(one.at)
        seen.append(next(one))
    for k in range(0, 3 * TOTAL, 7):
        again = walk(1, 2, start=positions[k])
        assert [next(again) for _ in range(5)] == seen[k : k + 5]


def test_shards_left_out_are_left_out_of_that_epoch_alone() -> None:
    whole, rest = walk(), walk(start=Position(0, 0, 0), skip=(0, 4))
    first = [next(whole) for _ in range(TOTAL)]
    left = {shard for shard, _ in first} - set(walk().coming(2))
    found = []
    while rest.at.epoch == 0:
        found.append(next(rest))
    assert {shard for shard, _ in found[:-1]} == left
    assert Counter(next(rest)[0] for _ in range(TOTAL - 1)).total() == TOTAL - 1


def test_a_walk_over_nothing_ends_with_a_sentence() -> None:
    empty = Walk(3, lambda _: 0, seed=0, window=2)
    with pytest.raises(DataError, match="none of the shards"):
        next(empty)


def test_more_processes_than_shards_are_refused() -> None:
    with pytest.raises(DataError, match="2 shards cannot be divided among 3"):
        Walk(2, lambda _: 1, seed=0, window=1, rank=0, world=3)


def test_a_walk_names_the_shards_it_will_need() -> None:
    one = walk()
    coming = one.coming(windows=5)
    assert sorted(coming) == list(range(len(COUNTS)))
    assert one.at == BEGINNING
    seen = list(dict.fromkeys(next(one)[0] for _ in range(TOTAL)))
    assert set(seen[:2]) <= set(coming[:4])


def test_a_blend_gives_each_source_its_share_and_its_own_numbers_in_turn() -> None:
    blend = Blend([3, 1, 1.5], seed=2)
    found = [blend(n) for n in range(2 * 1024)]
    counts = Counter(source for source, _ in found)
    assert [counts[k] / 2 for k in range(3)] == quotas([3, 1, 1.5]).tolist()
    for source in range(3):
        assert [m for s, m in found if s == source] == list(range(counts[source]))
    assert len({source for source, _ in found[:30]}) == 3
    again = Blend([3, 1, 1.5], seed=2)
    assert [again(n) for n in reversed(range(2048))] == found[::-1]


def test_shares_are_whole_and_sum_up() -> None:
    assert quotas([1, 1, 1]).tolist() == [342, 341, 341]
    assert quotas([0.1] * 10).sum() == 1024
    with pytest.raises(DataError, match="less than 1/2048"):
        quotas([1, 1e-6])
