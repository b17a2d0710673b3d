"""Sets written as shards, and indices of those that others wrote."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffit.cli import main
from diffit.data import ShardSet, open_dataset
from diffit.data.images import write_png
from diffit.data.index_shards import index_shards
from diffit.data.inspect import survey
from diffit.data.pack_shards import pack_shards
from diffit.data.stream_config import StreamConfig
from diffit.errors import DataError
from shard_sets import image_of, number_of, parquet_of, serving, write_shards, write_tar

SIDE = 64


def noise_of(number: int) -> np.ndarray:
    """An image that PNG cannot make small, and that says which it is."""
    image = np.random.default_rng(number).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    image[:, 0, 0] = image_of(number)[:, 0, 0]
    return image


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images of 12 kB each in three classes."""
    folder = tmp_path_factory.mktemp("source")
    for i in range(300):
        place = folder / f"class-{i // 100}"
        place.mkdir(exist_ok=True)
        write_png(place / f"{i:03d}.png", noise_of(i))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    told = pack_shards(str(source), out, shard_mib=1)
    assert told.images == 300
    assert told.bytes == sum(p.stat().st_size for p in out.glob("*.tar"))
    return out


def test_shards_hold_every_image_with_its_label(packed: Path, source: Path) -> None:
    found = open_dataset(packed)
    assert isinstance(found, ShardSet)
    assert found.classes == ("class-0", "class-1", "class-2")
    seen = sorted((number_of(found[i].image), found[i].label) for i in range(300))
    assert seen == [(i, i // 100) for i in range(300)]
    assert sorted(p.name for p in packed.parent.iterdir()) == ["out"]


def test_shards_are_bounded_and_of_mixed_classes(packed: Path) -> None:
    shards = sorted(packed.glob("*.tar"))
    assert len(shards) == 5
    assert all(path.stat().st_size <= 1 << 20 for path in shards)
    found = open_dataset(packed)
    assert {found.label(i) for i in range(40)} == {0, 1, 2}


def test_shards_are_webdatasets(packed: Path) -> None:
    with tarfile.open(packed / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert names[0].endswith(".png")
    assert names[1] == names[0].replace(".png", ".cls")


def interrupt_after(count: int):
    def follow(numbers: range) -> Iterator[int]:
        for k, i in enumerate(numbers):
            if k == count:
                raise KeyboardInterrupt
            yield i

    return follow


def test_an_interrupted_call_goes_on_and_gives_the_same_bytes(
    source: Path, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for count in (10, 150, 3, 90):
        with pytest.raises(KeyboardInterrupt):
            pack_shards(str(source), out, shard_mib=1, follow=interrupt_after(count))
        assert not out.exists()
    done = [*(tmp_path / "out.partial").glob("*.tar")]
    assert len(done) >= 2
    damaged = bytearray(done[-1].read_bytes())
    damaged[700] ^= 1
    done[-1].write_bytes(damaged)  # as a crash may leave it
    pack_shards(str(source), out, shard_mib=1)
    assert content(out) == content(packed)


def test_another_call_in_the_same_place_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack_shards(str(source), tmp_path / "out", follow=interrupt_after(5))
    with pytest.raises(DataError, match="was begun with another size"):
        pack_shards(str(source), tmp_path / "out", size=8)


def test_images_that_cannot_be_read_are_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i in range(5):
        write_png(tmp_path / "set" / f"{i}.png", image_of(i))
    (tmp_path / "set" / "2.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"2.png .*--skip-unreadable"):
        pack_shards(str(tmp_path / "set"), tmp_path / "out")
    told = pack_shards(str(tmp_path / "set"), tmp_path / "out", skip_unreadable=True)
    assert told.images == 4
    assert len(told.left_out) == 1
    assert len(open_dataset(tmp_path / "out")) == 4
    (tmp_path / "set" / "3.png").write_bytes(b"none")
    for i in (0, 1, 3, 4):
        (tmp_path / "set" / f"{i}.png").write_bytes(b"none")
    with pytest.raises(DataError):
        pack_shards(str(tmp_path / "set"), tmp_path / "out2", skip_unreadable=True)


def test_the_command_packs_indexes_and_inspects(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["data", "pack", str(source), str(out), "--format", "webdataset", "--size", "8"]
    assert main(words) == 0
    assert "300 images" in capsys.readouterr().out
    sheet = str(tmp_path / "sheet.png")
    assert main(["data", "inspect", str(out), "--json", "--sheet", sheet]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layout"] == "1 tar shards, with an index"
    assert told["images"] == 300
    assert told["classes"] == {"class-0": 100, "class-1": 100, "class-2": 100}
    assert Path(sheet).stat().st_size > 1000
    (out / "shards.json").unlink()
    classes = ["--classes", "a", "b", "c"]
    assert main(["data", "index", str(out), str(out / "shards.json"), *classes]) == 0
    assert "300 images in 1 shards, 3 classes" in capsys.readouterr().out
    assert open_dataset(out).classes == ("a", "b", "c")


def test_an_index_of_remote_shards_makes_them_a_data_set(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [4, 3], classes=2)
    stream = StreamConfig(cache=str(tmp_path / "cache"))
    with serving(folder) as server:
        index_shards(
            f"{server.address}/s-{{000..001}}.tar", tmp_path / "shards.json", config=stream
        )
        found = open_dataset(tmp_path / "shards.json", size=4, channels=3, stream=stream)
        assert found.classes == ("0", "1")
        assert [number_of(found[i].image) for i in range(7)] == list(range(7))


def test_an_index_of_parquet_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    stream = StreamConfig(cache=str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    parquet_of(tmp_path / "set" / "a.parquet", range(5), classes=2)
    index = index_shards(str(tmp_path / "set"), tmp_path / "set" / "shards.json", config=stream)
    assert index.classes == ("class 0", "class 1")
    found = open_dataset(tmp_path / "set", stream=stream)
    assert [number_of(found[i].image) for i in range(5)] == list(range(5))


def test_an_index_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [4], classes=2)
    with pytest.raises(DataError, match=r"must be called shards.json"):
        index_shards(str(folder), tmp_path / "index.json")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError, match="does not lie below"):
        index_shards(str(folder), tmp_path / "elsewhere" / "shards.json")
    with pytest.raises(DataError, match="labels up to 1, but 1 names"):
        index_shards(str(folder), folder / "shards.json", classes=["a"])
    index_shards(str(folder), folder / "shards.json")
    with pytest.raises(DataError, match="exists already"):
        index_shards(str(folder), folder / "shards.json")
    with pytest.raises(DataError, match="has an index already"):
        index_shards(str(folder), tmp_path / "shards.json")


def test_inspection_names_what_is_wrong_in_shards(tmp_path: Path) -> None:
    from shard_sets import samples

    members = [*samples(range(3), classes=2), ("000007.png", b"none"), *samples(range(9, 10))]
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"b.tar is truncated"):
        survey(str(tmp_path))
    (tmp_path / "b.tar").unlink()
    found = survey(str(tmp_path))
    assert found.images == 4
    assert list(found.unreadable) == [f"{tmp_path}/a.tar:000007.png"]
    assert found.classes == {"0": 2, "1": 1}
    assert "1 of the images have no label, or none of these classes" in found.notes
