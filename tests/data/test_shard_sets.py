"""Sets of shards: what a path stands for, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from diffit.data import ShardSet, open_dataset
from diffit.data.arrow import unpack
from diffit.data.images import to_png, write_png
from diffit.data.shard_index import Shard, ShardIndex, read_index, to_json
from diffit.data.shard_paths import expand_braces
from diffit.data.stream_config import StreamConfig
from diffit.errors import DataError
from shard_sets import (
    image_of,
    number_of,
    parquet_of,
    samples,
    serving,
    write_index,
    write_shards,
    write_tar,
)


def opened(path: Path | str, **keywords) -> ShardSet:
    found = open_dataset(str(path), **keywords)
    assert isinstance(found, ShardSet)
    return found


@pytest.mark.parametrize("form", ["", "/s-{000..002}.tar", "/*.tar", "/s-00?.tar"])
def test_a_folder_or_pattern_is_one_set(tmp_path: Path, form: str) -> None:
    found = opened(f"{write_shards(tmp_path / 'set', [4, 3, 2], classes=3)}{form}")
    assert len(found) == 9
    assert found.shape == (3, 4, 4)
    assert found.classes == ("0", "1", "2")
    assert [number_of(found[i].image) for i in range(9)] == list(range(9))
    assert [found[i].label for i in range(9)] == [i % 3 for i in range(9)]
    assert [found.label(i) for i in range(9)] == [i % 3 for i in range(9)]
    with pytest.raises(IndexError):
        found[9]


def test_images_are_cropped_resized_and_made_grey(tmp_path: Path) -> None:
    found = opened(write_shards(tmp_path / "set", [2]), size=2, channels=1)
    assert found.shape == found[1].image.shape == (1, 2, 2)


def test_an_index_tells_counts_shape_and_classes(tmp_path: Path) -> None:
    write_index(write_shards(tmp_path / "set", [2, 3], classes=3), [2, 3], classes=3)
    for path in (tmp_path / "set", tmp_path / "set" / "shards.json"):
        found = opened(path)
        assert found.classes == ("a", "b", "c")
        assert [number_of(found[i].image) for i in range(5)] == list(range(5))
    assert opened(tmp_path / "set", labels=False)[0].label is None


def test_the_index_reads_back_as_it_was_written(tmp_path: Path) -> None:
    index = ShardIndex(images=3, shards=(Shard(file="a.tar", images=3, bytes=9),))
    assert read_index(to_json(index), "x") == index


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "no index of shards"),
        ({"images": 7}, "images must be the sum"),
        ({"shards": []}, "shards"),
        ({"shards": [{"file": "../x.tar", "images": 5, "bytes": 1}]}, "outside its folder"),
        ({"shards": [{"file": "/etc/x.tar", "images": 5, "bytes": 1}]}, "outside its folder"),
        ({"shards": [{"file": "file:///x.tar", "images": 5, "bytes": 1}]}, "outside its folder"),
        ({"shards": [{"file": "x.zip", "images": 5, "bytes": 1}]}, "not all .tar"),
        ({"shards": [{"file": "s-000.tar", "images": -5, "bytes": 1}]}, "images"),
        ({"shapes": 1}, "unknown setting 'shapes'"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write_index(write_shards(tmp_path / "set", [2, 3]), [2, 3], **changes)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "set")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_an_index_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(DataError, match=r"no valid JSON|no index"):
        opened(tmp_path)


def test_a_shard_that_is_not_what_the_index_says_is_refused(tmp_path: Path) -> None:
    write_index(write_shards(tmp_path / "set", [2, 3]), [2, 3])
    with (tmp_path / "set" / "s-001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"s-001.tar has \d+ bytes, but its index says"):
        opened(tmp_path / "set")[3]
    write_index(write_shards(tmp_path / "other", [2, 3]), [1, 4])
    with pytest.raises(DataError, match=r"s-000.tar holds 2 images, but its index says 1"):
        opened(tmp_path / "other")[0]
    (tmp_path / "other" / "s-000.tar").unlink()
    with pytest.raises(DataError, match=r"s-000.tar cannot be read: No such file"):
        opened(tmp_path / "other")[0]


def test_shards_beside_images_are_unclear(tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    write_png(tmp_path / "a.png", image_of(0))
    with pytest.raises(DataError, match="holds both shards"):
        opened(tmp_path)


def test_shards_of_two_kinds_are_unclear(tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    (tmp_path / "a.parquet").touch()
    with pytest.raises(DataError, match="shards of several kinds"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none/s-{000..002}.tar", "there is no file none/s-000.tar"),
        ("none/*.tar", "stands for no files"),
        ("http://host/*.tar", "a web server has no list of files"),
        ("http://host/a.zip", r"is no .tar, .parquet or .arrow file"),
        ("a-{5..2}.tar", "must count upwards"),
        ("a-{0..99999999}.tar", "must count upwards"),
        ("a-{0..9999}-{0..9999}.tar", "more than 2097152 shards"),
    ],
)
def test_paths_that_stand_for_nothing_are_refused(path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(path)


def test_braces_count_with_their_zeros() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{0..1}/{0..1}.tar") == ["0/0.tar", "0/1.tar", "1/0.tar", "1/1.tar"]


def test_a_shard_named_twice_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 2])
    with pytest.raises(DataError, match="names a shard twice"):
        open_dataset(f"{tmp_path}/s-0*{{0..1}}*.tar")


def test_empty_shards_hold_nothing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(DataError, match="holds no images"):
        opened(tmp_path)


def test_missing_and_wrong_labels_are_told_by_name(tmp_path: Path) -> None:
    members = [*samples(range(2), classes=2), *samples(range(2, 3))]
    write_tar(tmp_path / "a.tar", members)
    found = opened(tmp_path)
    with pytest.raises(DataError, match=r"000002.png has no label, and the set has 2 classes"):
        found[2]
    assert opened(tmp_path, labels=False)[2].label is None
    found = opened(tmp_path, stream=StreamConfig(classes=1))
    with pytest.raises(DataError, match=r"000001.png has the label 1, and the set has 1 classes"):
        found[1]


def test_shards_of_other_sizes_or_colours_are_told_by_name(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", [("0.png", to_png(image_of(0))), ("1.png", to_png(image_of(1, 5)))]
    )
    with pytest.raises(DataError, match=r"1.png is 5 x 5, the set is 4 x 4; set data.size"):
        opened(tmp_path)[1]


def test_remote_shards_without_an_index_have_no_length(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [2, 3], classes=2)
    stream = StreamConfig(cache=str(tmp_path / "cache"), classes=2)
    with serving(folder) as server:
        pattern = f"{server.address}/s-{{000..001}}.tar"
        found = opened(pattern, stream=stream)
        assert found.counts is None
        assert number_of(found[1, 2].image) == 4
        with pytest.raises(DataError, match=r"has no shards.json"):
            len(found)
        with pytest.raises(DataError, match=r"has labels, but no shards.json"):
            opened(pattern, stream=StreamConfig(cache=str(tmp_path / "cache")))


def test_remote_shards_with_an_index_are_a_data_set(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [2, 3], classes=2)
    write_index(folder, [2, 3], classes=2)
    stream = StreamConfig(cache=str(tmp_path / "cache"))
    with serving(folder) as server:
        for path in (f"{server.address}/", f"{server.address}/shards.json"):
            found = opened(path, stream=stream)
            assert [number_of(found[i].image) for i in range(5)] == list(range(5))
        assert server.asked["/s-001.tar"] == 1  # the second set found the copies of the first


def test_the_folder_of_copies_is_bounded(tmp_path: Path) -> None:
    folder, counts = tmp_path / "set", [30] * 8
    write_index(write_shards(folder, counts), counts)
    one = (folder / "s-000.tar").stat().st_size
    stream = StreamConfig(cache=str(tmp_path / "cache"), cache_gib=3.5 * one / 2**30)
    with serving(folder) as server:
        found = opened(f"{server.address}/", stream=stream)
        for shard in range(8):
            found.open(shard)
            assert sum(p.stat().st_size for p in (tmp_path / "cache").iterdir()) <= 3.5 * one
        # Copies that went are fetched again, also of shards that are open still.
        assert [number_of(found[i].image) for i in range(240)] == list(range(240))


def test_parquet_files_are_a_set_with_named_classes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    parquet_of(tmp_path / "a.parquet", range(10), classes=3)
    parquet_of(tmp_path / "b.parquet", range(10, 13), classes=3)
    found = opened(tmp_path, stream=StreamConfig(cache=str(tmp_path / "cache")))
    assert found.classes == ("class 0", "class 1", "class 2")
    assert [number_of(found[i].image) for i in range(13)] == list(range(13))
    assert [found.label(i) for i in range(13)] == [i % 3 for i in range(13)]


def test_a_folder_of_huggingface_datasets_is_a_set(tmp_path: Path) -> None:
    """As `Dataset.save_to_disk` of the library itself writes it."""
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    images = [Image.fromarray(image_of(n).transpose(1, 2, 0)) for n in range(7)]
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    content = {"image": images, "label": [n % 2 for n in range(7)]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "set")
    found = opened(tmp_path / "set")
    assert found.classes == ("cat", "dog")
    assert [number_of(found[i].image) for i in range(7)] == list(range(7))
    assert found[3].label == 1


def test_columns_that_are_unclear_must_be_chosen(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    png = [to_png(image_of(n)) for n in range(4)]
    columns = {"front": png, "back": png[::-1], "label": [0, 1, 0, 1], "cls": [1, 1, 1, 0]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    cache = str(tmp_path / "cache")
    with pytest.raises(DataError, match="several columns of images: front, back; choose with data"):
        opened(tmp_path, stream=StreamConfig(cache=cache))
    with pytest.raises(DataError, match="several columns of labels: label, cls"):
        opened(tmp_path, stream=StreamConfig(cache=cache, image_column="front"))
    with pytest.raises(DataError, match="no column 'side' of images; there is front, back"):
        opened(tmp_path, stream=StreamConfig(cache=cache, image_column="side"))
    chosen = {"image_column": "back", "label_column": "cls", "cache": cache}
    with pytest.raises(DataError, match=r"without the names of their classes; set data.stream"):
        opened(tmp_path, stream=StreamConfig(**chosen))
    found = opened(tmp_path, stream=StreamConfig(**chosen, classes=2))
    assert [number_of(found[i].image) for i in range(4)] == [3, 2, 1, 0]
    assert [found[i].label for i in range(4)] == [1, 1, 1, 0]


def test_damaged_and_foreign_tables_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cache = StreamConfig(cache=str(tmp_path / "cache"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DataError, match="is no parquet file"):
        opened(tmp_path / "a.parquet", stream=cache)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of images, only text"):
        opened(tmp_path / "a.parquet", stream=cache)
    (tmp_path / "a.arrow").write_bytes(bytes(100))
    with pytest.raises(DataError, match="is no Arrow file"):
        opened(tmp_path / "a.arrow")
    whole = parquet_of(tmp_path / "b.parquet", range(20)).read_bytes()
    middle = len(whole) // 2
    (tmp_path / "b.parquet").write_bytes(whole[:middle] + bytes(300) + whole[middle + 300 :])
    with pytest.raises(DataError, match=r"damaged|bytes"):
        [opened(tmp_path / "b.parquet", stream=cache)[i] for i in range(20)]


def test_what_a_killed_process_left_of_a_fetch_is_cleared(tmp_path: Path) -> None:
    write_index(write_shards(tmp_path / "set", [2]), [2])
    stream = StreamConfig(cache=str(tmp_path / "cache"))
    with serving(tmp_path / "set") as server:
        found = opened(f"{server.address}/", stream=stream)
        name = found.copies._name(0)
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / f".{name}.4711.partial").write_bytes(b"half")
        (tmp_path / "cache" / name.replace("shard", "claim")).write_bytes(b"")
        assert number_of(found[1].image) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]


def test_remote_parquet_files_are_fetched_and_unpacked(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "set").mkdir()
    parquet_of(tmp_path / "set" / "a.parquet", range(10), classes=2)
    stream = StreamConfig(cache=str(tmp_path / "cache"))
    with serving(tmp_path / "set") as server:
        found = opened(f"{server.address}/a.parquet", size=4, channels=3, stream=stream)
        assert found.classes == ("class 0", "class 1")
        assert [number_of(found[0, i].image) for i in range(10)] == list(range(10))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".shard"]


def test_a_replaced_file_is_fetched_anew(tmp_path: Path) -> None:
    """Without an index the size tells; with one its checksum does."""
    write_shards(tmp_path / "set", [2])
    stream = StreamConfig(cache=str(tmp_path / "cache"))
    with serving(tmp_path / "set") as server:
        path = f"{server.address}/s-000.tar"
        assert number_of(opened(path, stream=stream)[0, 1].image) == 1
        write_tar(tmp_path / "set" / "s-000.tar", samples(range(10, 30)))
        assert number_of(opened(path, stream=stream)[0, 1].image) == 11


@pytest.mark.parametrize("kind", ["tar", "parquet", "arrow"])
def test_whatever_bytes_are_damaged_the_answer_is_one_sentence(tmp_path: Path, kind: str) -> None:
    if kind == "tar":
        whole = write_tar(tmp_path / "whole", samples(range(6), classes=2)).read_bytes()
    else:
        pytest.importorskip("pyarrow")
        parquet_of(tmp_path / "whole", range(20), classes=2)
        unpack(tmp_path / "whole", tmp_path / "unpacked")
        chosen = "whole" if kind == "parquet" else "unpacked"
        whole = (tmp_path / chosen).read_bytes()
    rng, answers = np.random.default_rng(0), list[str]()
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        end = rng.integers(len(whole) // 2, 2 * len(whole))
        (tmp_path / f"a.{kind}").write_bytes(damaged[:end])
        try:
            stream = StreamConfig(cache=str(tmp_path / "cache"), classes=2)
            found = opened(tmp_path / f"a.{kind}", size=4, channels=3, stream=stream)
            for i in range(len(found)):
                assert found[i].image.shape == (3, 4, 4)
        except DataError as error:
            answers.append(str(error))
    assert len(answers) > 20
    assert not any("\n" in answer for answer in answers)
