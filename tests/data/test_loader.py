import os
import subprocess
import sys
import textwrap
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from diffit.data import open_dataset
from diffit.data.example import Example
from diffit.data.images import write_png
from diffit.data.loader import Loader
from diffit.errors import DataError


class Numbered:
    """Example i is an image of the value i, wider than high, that tells left from right."""

    shape = (1, 2, 3)

    def __init__(self, count: int, classes: tuple[str, ...] = ("even", "odd")) -> None:
        self.count, self.classes, self.reads = count, classes, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Example:
        self.reads += 1
        return Example(
            np.full(self.shape, i, np.uint8) + np.arange(3, dtype=np.uint8), self.label(i)
        )

    def label(self, i: int) -> int | None:
        return i % 2 if self.classes else None


def seen(loader: Loader, batches: int) -> list[int]:
    """Which examples come in so many batches."""
    return [int(v) for batch in islice(loader, batches) for v in batch.image.amin((1, 2, 3))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(10):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        write_png(root / "ab"[i % 2] / f"{i}.png", np.full((1, 4, 4), i, np.uint8))
    return root


def test_every_epoch_holds_each_image_once_though_the_batch_divides_no_epoch() -> None:
    order = seen(Loader(Numbered(10), batch=4, seed=3), 15)
    assert len(order) == 60
    for epoch in range(6):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert len({tuple(order[10 * e : 10 * e + 10]) for e in range(6)}) == 6


def test_the_order_follows_from_the_seed() -> None:
    one, same, other = (seen(Loader(Numbered(50), batch=10, seed=s), 5) for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("start", [0, 1, 7, 10, 33])
@pytest.mark.parametrize("batch", [1, 3, 10, 25])
def test_a_resumed_run_goes_on_exactly_where_it_stopped(start: int, batch: int) -> None:
    whole = Loader(Numbered(10), batch=1, seed=5, flip=True)
    expected = list(islice(whole, start + 2 * batch))[start:]
    resumed = list(islice(Loader(Numbered(10), batch=batch, seed=5, start=start, flip=True), 2))
    assert torch.equal(
        torch.cat([b.image for b in resumed]), torch.cat([b.image for b in expected])
    )
    numbers = torch.cat([b.number for b in resumed])
    assert numbers.tolist() == list(range(start, start + 2 * batch))


def test_index_says_which_example_a_number_is() -> None:
    loader = Loader(Numbered(10), batch=7, seed=0)
    assert seen(loader, 5) == [loader.index(n) for n in range(35)]
    assert loader.index(2) == Loader(Numbered(10), batch=1, seed=0).index(2)


def test_labels_go_with_their_images() -> None:
    for batch in islice(Loader(Numbered(10), batch=4, seed=0), 5):
        assert batch.label.dtype == torch.int64
        assert torch.equal(batch.label, batch.image[:, 0, 0, 0].long() % 2)
    assert next(Loader(Numbered(10, ()), batch=4, seed=0)).label is None


def test_half_of_the_images_are_mirrored_by_their_number_alone() -> None:
    plain = torch.cat([b.image for b in islice(Loader(Numbered(20), batch=50, seed=0), 20)])
    flipped = [
        torch.cat(
            [b.image for b in islice(Loader(Numbered(20), batch=n, seed=0, flip=True), 1000 // n)]
        )
        for n in (50, 20)
    ]
    assert torch.equal(*flipped)
    mirrored = (flipped[0] != plain).flatten(1).any(1)
    assert torch.equal(flipped[0][mirrored], plain[mirrored].flip(-1))
    assert 450 < mirrored.sum() < 550


def test_processes_share_the_images_of_a_run_without_overlap() -> None:
    alone = [b.number.tolist() for b in islice(Loader(Numbered(10), batch=6, seed=1, start=12), 3)]
    parts = [
        [b.number.tolist() for b in islice(loader, 3)]
        for loader in (
            Loader(Numbered(10), batch=6, seed=1, start=12, rank=rank, world=3) for rank in range(3)
        )
    ]
    assert [a + b + c for a, b, c in zip(*parts, strict=True)] == alone


def test_images_that_fit_into_memory_are_decoded_once() -> None:
    dataset = Numbered(10)
    seen(Loader(dataset, batch=4, seed=0), 50)
    assert dataset.reads == 10
    dataset = Numbered(10)
    seen(Loader(dataset, batch=4, seed=0, memory=10 * 6 - 1), 50)
    assert dataset.reads == 200


def test_a_batch_can_be_changed_without_changing_the_set() -> None:
    loader = Loader(Numbered(4), batch=4, seed=0)
    next(loader).image.fill_(99)
    assert sorted(seen(loader, 1)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"start": -1}, {"rank": 1, "world": 1}, {"dataset": Numbered(0)}]
)
def test_what_makes_no_sense_is_refused(wrong: dict) -> None:
    arguments = {"dataset": Numbered(3), "batch": 1, "seed": 0} | wrong
    with pytest.raises(ValueError, match="a loader needs images, start >= 0"):
        Loader(arguments.pop("dataset"), **arguments)


def test_a_file_that_breaks_during_training_is_named(tmp_path: Path) -> None:
    for i in range(3):
        write_png(tmp_path / f"{i}.png", np.zeros((1, 4, 4), np.uint8))
    loader = Loader(open_dataset(tmp_path), batch=3, seed=0)
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1\.png is no image that can be read"):
        next(loader)


# --- with workers


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_workers_bring_the_same_images_in_the_same_order(folder: Path, memory: int) -> None:
    dataset = open_dataset(folder)
    with (
        Loader(dataset, batch=4, seed=0, start=3, memory=memory) as alone,
        Loader(dataset, batch=4, seed=0, start=3, memory=memory, workers=2) as helped,
    ):
        for one, other in islice(zip(alone, helped, strict=True), 12):
            assert all(map(torch.equal, one, other))


def test_workers_end_when_all_images_are_in_memory(folder: Path) -> None:
    with Loader(open_dataset(folder), batch=4, seed=0, workers=1) as loader:
        assert loader._workers is not None
        order = seen(loader, 3)
        assert loader._workers is None
        order += seen(loader, 7)
        assert sorted(order) == sorted(4 * list(range(10)))


def test_a_closed_loader_goes_on_without_workers_and_loses_nothing(folder: Path) -> None:
    expected = seen(Loader(open_dataset(folder), batch=4, seed=0), 6)
    loader = Loader(open_dataset(folder), batch=4, seed=0, workers=1, memory=0)
    got = seen(loader, 2)
    loader.close()
    loader.close()
    assert got + seen(loader, 4) == expected


def test_a_worker_names_the_file_that_breaks(folder: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "0.png", np.zeros((1, 4, 4), np.uint8))
    (tmp_path / "1.png").write_bytes(b"broken")
    dataset = open_dataset(tmp_path, channels=1)
    with (
        Loader(dataset, batch=2, seed=0, workers=1) as loader,
        pytest.raises(DataError, match=r"1\.png is no image that can be read"),
    ):
        next(loader)


class Deadly(Numbered):
    """Reading it ends the process, as the system does when memory is short."""

    def __getitem__(self, i: int) -> Example:
        os._exit(9)


def test_a_worker_that_dies_is_reported_with_the_way_out() -> None:
    with (
        Loader(Deadly(4), batch=2, seed=0, workers=1) as loader,
        pytest.raises(DataError, match=r"has died.*set data\.workers to a smaller number"),
    ):
        next(loader)


SCRIPT = """
    import sys

    if __name__ == "__main__":
        from diffit.data import open_dataset
        from diffit.data.loader import Loader

        with Loader(open_dataset(sys.argv[1]), batch=4, seed=0, workers=2, memory=0) as loader:
            next(loader)
            print(*loader._workers._pool._processes, flush=True)
            while True:
                next(loader)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_workers_end_with_a_parent_that_was_killed(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True
    ) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(alive, workers))
        parent.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_a_worker_needs_no_torch() -> None:
    code = "import sys, diffit.data.workers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
