"""Batches from shards: each image once, whoever reads and whatever the network does."""

import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diffit.data import DataConfig, open_data, open_dataset
from diffit.data.images import to_png, write_png
from diffit.data.mix import quotas
from diffit.data.stream import StreamLoader
from diffit.data.stream_config import StreamConfig
from diffit.errors import DataError
from shard_sets import (
    Fault,
    answer_500,
    cut_in_the_middle,
    drop,
    every,
    image_of,
    number_of,
    parquet_of,
    samples,
    serving,
    write_index,
    write_shards,
    write_tar,
)

COUNTS = [11, 7, 0, 13, 5, 9, 3]
TOTAL = sum(COUNTS)


def numbers(loader: StreamLoader, batches: int) -> list[int]:
    return [
        number_of(im) for batch in itertools.islice(loader, batches) for im in batch.image.numpy()
    ]


def loader(path: Path | str, *, cache: Path | None = None, **keywords) -> StreamLoader:
    config = StreamConfig(
        cache=str(cache or "unused"),
        retries=4,
        timeout=2,
        **{key: keywords.pop(key) for key in list(keywords) if key in StreamConfig.model_fields},
    )
    dataset = open_dataset(str(path), size=4, channels=3, stream=config)
    return StreamLoader(dataset, **{"batch": 8, "seed": 5, "config": config, **keywords})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "set", COUNTS, classes=3)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("lanes", [1, 3])
def test_ranks_share_each_batch_and_together_see_each_image_once(
    folder: Path, world: int, lanes: int
) -> None:
    batches = [
        list(itertools.islice(loader(folder, rank=r, world=world, lanes=lanes), TOTAL))
        for r in range(world)
    ]
    found = {}
    for batch in itertools.chain(*batches):
        for n, image, label in zip(batch.number, batch.image, batch.label, strict=True):
            assert int(n) not in found
            found[int(n)] = number_of(image.numpy())
            assert label == found[int(n)] % 3
    assert sorted(found) == list(range(8 * TOTAL))
    for epoch in range(8):
        once = [found[n] for n in range(epoch * TOTAL, (epoch + 1) * TOTAL)]
        assert sorted(once) == list(range(TOTAL))
    alone = loader(folder, lanes=lanes)
    assert numbers(alone, TOTAL) == [found[n] for n in range(8 * TOTAL)]


def test_a_loader_that_starts_later_sees_what_the_first_one_saw(folder: Path) -> None:
    whole = numbers(loader(folder), 30)
    for start in (1, 8, 77, 150):
        assert numbers(loader(folder, start=start), 5) == whole[start : start + 40]


def test_workers_give_the_same_batches(folder: Path) -> None:
    with loader(folder, workers=2, flip=True) as fast, loader(folder, flip=True) as slow:
        for a, b in itertools.islice(zip(fast, slow, strict=True), 12):
            assert (a.image == b.image).all()
            assert (a.label == b.label).all()
            assert (a.number == b.number).all()


@pytest.mark.parametrize("fault", [drop, answer_500, cut_in_the_middle])
@pytest.mark.parametrize("indexed", [True, False])
def test_an_epoch_over_a_bad_network_is_complete(
    folder: Path, tmp_path: Path, fault: Fault, indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("diffit.data.remote.pauses", lambda p, _: iter([0.01] * p.retries))
    if indexed:
        write_index(folder, COUNTS, classes=3)
    with serving(folder, every(3, fault)) as server:
        path = server.address + ("/" if indexed else "/s-{000..006}.tar")
        with loader(path, cache=tmp_path / "cache", batch=1, classes=3, window=2) as reading:
            assert sorted(numbers(reading, TOTAL)) == list(range(TOTAL))
            assert sorted(numbers(reading, TOTAL)) == list(range(TOTAL))


def test_shards_of_unknown_length_are_seen_once_and_resumed_exactly(
    folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with serving(folder) as server:
        keywords = {"cache": cache, "classes": 3, "window": 2, "world": 2}
        path = f"{server.address}/s-{{000..006}}.tar"
        for rank in range(2):
            with loader(path, rank=rank, **keywords) as reading:
                whole = numbers(reading, 20)
            with loader(path, rank=rank, **keywords) as reading:
                before = numbers(reading, 7)
                assert before == whole[:28]
                numbers(reading, 3)  # as batches that wait to be trained on
                state = json.loads(json.dumps(reading.state(56)))
            states = [{**state, "rank": r} for r in range(2)]
            with loader(path, rank=rank, states=states, start=56, **keywords) as reading:
                assert numbers(reading, 13) == whole[28:]


def test_on_another_number_of_processes_no_shard_is_repeated(folder: Path, tmp_path: Path) -> None:
    """What is left of the shards in hand is passed over: of `window` shards for each process."""
    keywords = {"cache": tmp_path / "cache", "classes": 3, "window": 1, "batch": 2}
    owner = np.repeat(np.arange(7), COUNTS)
    with serving(folder) as server:
        path = f"{server.address}/s-{{000..006}}.tar"
        states, seen = [], []
        for rank in range(2):
            with loader(path, rank=rank, world=2, **keywords) as reading:
                seen += numbers(reading, 6)
                states.append(reading.state())
        assert {state["walks"][0][0] for state in states} == {0}
        begun = {int(owner[n]) for n in seen}
        with loader(path, states=states, **keywords) as reading:
            rest = []
            while reading.state()["walks"][0][0] == 0:
                rest += numbers(reading, 1)
            again = [reading.state()]
            follow_up = numbers(reading, 10)
        with loader(path, states=again, **keywords) as reading:
            assert numbers(reading, 10) == follow_up
        first_epoch = set(rest[:-2])
        assert not first_epoch & set(seen)
        assert not {int(owner[n]) for n in first_epoch} & begun
        missed = set(range(TOTAL)) - first_epoch - set(seen)
        assert len({int(owner[n]) for n in missed}) <= 2 + 2


def broken_set(folder: Path) -> Path:
    """Three shards; image 5 is no image, image 9 is cut off."""
    folder.mkdir()
    for j in range(3):
        members = samples(range(4 * j, 4 * j + 4))
        if j == 1:
            members[1] = ("000005.png", b"none")
        if j == 2:
            members[1] = ("000009.png", to_png(image_of(9))[:50])
        write_tar(folder / f"s-{j:03d}.tar", members)
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_passed_over_up_to_the_limit(tmp_path: Path, workers: int) -> None:
    path = broken_set(tmp_path / "set")
    with loader(path, batch=4, max_bad=2, workers=workers) as reading:
        found = Counter(numbers(reading, 3))
        notes = reading.notes()
        assert set(found) == set(range(12)) - {5, 9}
        assert sorted(found.values()) == [1] * 8 + [2] * 2  # the next good ones took their places
        assert len(notes) == 2
        assert "passed over image 2 of 2" in notes[1]
        numbers(reading, 6)
        assert reading.notes() == []
        states = [reading.state()]
    with (
        loader(path, batch=4, max_bad=1, workers=workers) as reading,
        pytest.raises(DataError, match=r"\(1 image passed over already; to pass over more, raise"),
    ):
        numbers(reading, 3)
    with loader(path, batch=4, max_bad=2, states=states, start=36) as reading:
        numbers(reading, 3)  # those known already count no more


def test_by_default_a_bad_image_stops_the_run_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"00000\d.png .*raise data.stream.max_bad above 0"):
        numbers(loader(broken_set(tmp_path / "set"), batch=4), 3)


@pytest.mark.parametrize("how", ["vanished", "truncated"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_lost_shard_is_passed_over_if_that_is_allowed(
    folder: Path, tmp_path: Path, how: str, indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffit.data.remote.pauses", lambda p, _: iter([0.01] * p.retries))
    if indexed:
        write_index(folder, COUNTS, classes=3)
    lost = folder / "s-003.tar"
    if how == "vanished":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:5000])
    with serving(folder) as server:
        path = server.address + ("/" if indexed else "/s-{000..006}.tar")
        keywords = {"cache": tmp_path / "cache", "classes": 3, "batch": 1}
        with loader(path, **keywords, max_bad_shards=1) as reading:
            found = set(numbers(reading, TOTAL))
            assert found == set(range(TOTAL)) - set(range(18, 31))
            notes = reading.notes()
            assert len(notes) == 1
            assert "passed over shard 1 of 1" in notes[0]
            assert "s-003.tar" in notes[0]
        with loader(path, **keywords) as reading, pytest.raises(DataError, match="max_bad_shards"):
            numbers(reading, TOTAL)


def test_a_truncated_local_shard_stops_the_run_with_one_sentence(folder: Path) -> None:
    write_index(folder, COUNTS, classes=3)
    (folder / "s-003.tar").write_bytes((folder / "s-003.tar").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"s-003.tar has 5000 bytes, but its index says \d+"):
        numbers(loader(folder), 6)


def test_parquet_shards_are_seen_once(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "set").mkdir()
    for j in range(3):
        parquet_of(tmp_path / "set" / f"{j}.parquet", range(9 * j, 9 * j + 9), classes=3)
    found = {}
    for rank in range(2):
        keywords = {"rank": rank, "world": 2, "workers": rank, "cache": tmp_path / "cache"}
        with loader(tmp_path / "set", **keywords) as reading:
            for batch in itertools.islice(reading, 7):
                pairs = zip(batch.number, batch.image, strict=True)
                found |= {int(n): number_of(image.numpy()) for n, image in pairs}
    assert sorted(found[n] for n in range(27)) == list(range(27))
    assert sorted(found[n] for n in range(27, 54)) == list(range(27))


def test_ranks_share_the_copies_of_their_machine(folder: Path, tmp_path: Path) -> None:
    write_index(folder, COUNTS, classes=3)
    with serving(folder) as server:
        loaders = [
            loader(f"{server.address}/", cache=tmp_path / "cache", rank=r, world=3)
            for r in range(3)
        ]
        for reading in loaders:
            numbers(reading, 10)
            reading.close()
        full = [j for j, count in enumerate(COUNTS) if count]
        assert {server.asked[f"/s-{j:03d}.tar"] for j in full} == {1}


def test_sets_are_mixed_by_weight(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [40, 24])
    images = tmp_path / "images"
    images.mkdir()
    for n in range(100, 130):
        write_png(images / f"{n}.png", image_of(n))
    mix = [{"path": str(shards), "weight": 3}, {"path": str(images), "weight": 1}]
    dataset = open_data(DataConfig(mix=mix))
    assert len(dataset) == 94
    assert number_of(dataset[70].image) == 106
    alone = numbers(StreamLoader(dataset, batch=64, seed=1), 32)
    assert [sum(n < 100 for n in alone[k : k + 1024]) for k in (0, 1024)] == [768, 768]
    assert quotas([3, 1]).tolist() == [768, 256]
    of_images = [n for n in alone if n >= 100]
    assert sorted(of_images[:30]) == list(range(100, 130))
    assert sorted([n for n in alone if n < 100][:64]) == list(range(64))
    parts = [StreamLoader(dataset, batch=64, seed=1, rank=r, world=3) for r in range(3)]
    together = {}
    for part in parts:
        for batch in itertools.islice(part, 32):
            pairs = zip(batch.number, batch.image, strict=True)
            together |= {int(n): number_of(image.numpy()) for n, image in pairs}
    assert [together[n] for n in range(2048)] == alone
    assert StreamLoader(dataset, batch=64, seed=1).index(5) is not None


def test_sets_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    parts = {
        "plain": write_shards(tmp_path / "plain", [3]),
        "labelled": write_shards(tmp_path / "labelled", [3], classes=2),
        "small": tmp_path / "small",
    }
    parts["small"].mkdir()
    write_png(parts["small"] / "0.png", image_of(0, 3))

    def mixed(*names: str):
        return open_data(DataConfig(mix=[{"path": str(parts[name])} for name in names]))

    with pytest.raises(DataError, match=r"small has images of 3 x 3 x 3, .*plain of 4 x 4 x 3"):
        mixed("plain", "small")
    with pytest.raises(DataError, match=r"has 2 classes \(0, 1\), .*plain has 0 \(none\)"):
        mixed("plain", "labelled")


def test_more_lanes_than_shards_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data.stream.lanes is 9"):
        loader(folder, lanes=9)


def test_memory_is_bounded_by_the_window_not_by_the_set(folder: Path) -> None:
    """What is looked at ahead: for local shards no more than the batches that workers read."""
    reading = loader(folder, workers=0)
    next(reading)
    assert len(reading._places) == 0
    assert len(reading._needed) == 0


def test_shards_in_a_bucket_come_through_fsspec(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for s3fs that keeps files in memory and breaks off every third transfer."""
    pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr("diffit.data.remote.pauses", lambda p, _: iter([0.01] * p.retries))
    calls = itertools.count()

    class Bucket(MemoryFileSystem):
        protocol = "s3"
        store: dict = {}  # noqa: RUF012  (fsspec's own way)
        pseudo_dirs = [""]  # noqa: RUF012

        def cat_file(self, path: str, **keywords):
            if next(calls) % 3 == 2:
                raise OSError("SlowDown: please reduce your request rate")
            return super().cat_file(path, **keywords)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("s3://").strip("/")

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Bucket)
    write_index(folder, COUNTS, classes=3)
    for path in folder.iterdir():
        Bucket().pipe_file(f"/bucket/{path.name}", path.read_bytes())
    for address in ("s3://bucket/", "s3://bucket/s-00?.tar"):
        cache = tmp_path / address[-4:-1]
        with loader(address, cache=cache, batch=1, classes=3) as reading:
            assert sorted(numbers(reading, TOTAL)) == list(range(TOTAL))
    assert next(calls) > 16


def test_machines_fetch_shards_of_their_own_where_there_are_lanes(tmp_path: Path) -> None:
    """Two processes with a cache each: together they fetch each shard once, not twice."""
    counts = [8] * 12
    write_index(write_shards(tmp_path / "set", counts), counts)
    for lanes, twice in ((2, False), (1, True)):
        with serving(tmp_path / "set") as server:
            for rank in range(2):
                keywords = {"rank": rank, "world": 2, "lanes": lanes, "window": 1}
                cache = tmp_path / f"cache-{lanes}-{rank}"
                with loader(f"{server.address}/", cache=cache, **keywords) as reading:
                    numbers(reading, 8)
            asked = {name: n for name, n in server.asked.items() if name.endswith(".tar")}
        assert (max(asked.values()) == 2) == twice
