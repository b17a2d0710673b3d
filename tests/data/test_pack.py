import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffit.data import open_dataset
from diffit.data.images import write_png
from diffit.data.pack import pack
from diffit.errors import DataError

RNG = np.random.default_rng(6)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for i in range(7):
        folder = tmp_path / "source" / ("äpfel" if i < 3 else "pears")
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"{i}.png", RNG.integers(0, 256, (3, 20, 24), dtype=np.uint8))
    return tmp_path / "source"


def interrupt_after(count: int):
    """Stops a run as Ctrl-C does, after so many images."""

    def follow(numbers: range) -> Iterator[int]:
        for i in numbers:
            if i == count:
                raise KeyboardInterrupt
            yield i

    return follow


def test_a_zip_holds_what_the_set_gives(source: Path, tmp_path: Path) -> None:
    packed = pack(str(source), tmp_path / "out.zip", size=8)
    assert packed.images == 7
    assert packed.bytes == (tmp_path / "out.zip").stat().st_size
    original, again = open_dataset(source, size=8), open_dataset(tmp_path / "out.zip")
    assert again.classes == original.classes == ("pears", "äpfel")
    assert len(again) == len(original)
    for i in range(7):
        assert (again[i].image == original[i].image).all()
        assert again[i].label == original[i].label
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zip", "source"]


def test_the_layout_is_edms(source: Path, tmp_path: Path) -> None:
    pack(str(source), tmp_path / "out.zip", size=8)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist()[:2] == ["00000/img00000000.png", "00000/img00000001.png"]
        index = json.loads(archive.read("dataset.json"))
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert index["labels"][0] == ["00000/img00000000.png", 0]


def test_a_set_without_classes_has_no_labels(source: Path, tmp_path: Path) -> None:
    pack(str(source), tmp_path / "out.zip", size=8, labels=False)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}


def test_an_interrupted_run_goes_on_and_makes_the_same_file(source: Path, tmp_path: Path) -> None:
    pack(str(source), tmp_path / "whole.zip", size=8)
    with pytest.raises(KeyboardInterrupt):
        pack(str(source), tmp_path / "out.zip", size=8, follow=interrupt_after(4))
    assert not (tmp_path / "out.zip").exists()
    made = sorted((tmp_path / "out.zip.partial" / "00000").iterdir())
    before = [path.stat().st_mtime_ns for path in made]
    assert len(made) == 4
    with pytest.raises(KeyboardInterrupt):
        pack(str(source), tmp_path / "out.zip", size=8, follow=interrupt_after(6))
    assert [path.stat().st_mtime_ns for path in made] == before  # nothing is made twice
    pack(str(source), tmp_path / "out.zip", size=8)
    assert (tmp_path / "out.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()


def test_going_on_with_other_settings_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack(str(source), tmp_path / "out.zip", size=8, follow=interrupt_after(4))
    with pytest.raises(DataError, match=r"begun with another size \(8, now 16\); remove it or"):
        pack(str(source), tmp_path / "out.zip", size=16)


def test_an_image_that_a_crash_left_damaged_is_made_again(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack(str(source), tmp_path / "out.zip", size=8, follow=interrupt_after(4))
    (tmp_path / "out.zip.partial" / "00000" / "img00000002.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"img00000002\.png was damaged and has been removed; run"):
        pack(str(source), tmp_path / "out.zip", size=8)
    assert pack(str(source), tmp_path / "out.zip", size=8).images == 7


def test_an_unreadable_image_stops_unless_it_may_be_left_out(source: Path, tmp_path: Path) -> None:
    (source / "pears" / "4.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"4\.png is no image.*\(or leave such out: --skip-unread"):
        pack(str(source), tmp_path / "out.zip", size=8)
    packed = pack(str(source), tmp_path / "out.zip", size=8, skip_unreadable=True)
    assert packed.images == 6
    assert len(packed.left_out) == 1
    again = open_dataset(tmp_path / "out.zip")
    assert [again[i].label for i in range(6)] == [0, 0, 0, 1, 1, 1]


def test_nothing_readable_makes_no_zip(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_png(tmp_path / "source" / "a.png", np.zeros((3, 8, 8), np.uint8))
    write_png(tmp_path / "source" / "b.png", np.zeros((3, 9, 9), np.uint8))
    with pytest.raises(DataError, match=r"b\.png is 9 x 9, the first image is 8 x 8"):
        pack(str(tmp_path / "source"), tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("out", "answer"),
    [
        ("out.tar", "must end in .zip"),
        ("there.zip", "exists already; name a new file or remove it"),
        ("no/such/out.zip", "there is no folder"),
    ],
)
def test_an_impossible_output_is_refused_before_any_work(
    source: Path, tmp_path: Path, out: str, answer: str
) -> None:
    (tmp_path / "there.zip").write_bytes(b"")
    with pytest.raises(DataError, match=answer):
        pack(str(source), tmp_path / out)


def test_a_full_disk_is_one_sentence_and_the_work_is_kept(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "img00000003" in self.name:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"img00000003\.png cannot be written: No space left"):
        pack(str(source), tmp_path / "out.zip", size=8)
    monkeypatch.undo()
    assert pack(str(source), tmp_path / "out.zip", size=8).images == 7


def test_arrays_can_be_packed(tmp_path: Path) -> None:
    pack("builtin:digits-test", tmp_path / "digits.zip")
    digits, again = open_dataset("builtin:digits-test"), open_dataset(tmp_path / "digits.zip")
    assert again.classes == digits.classes
    assert again.shape == digits.shape
    assert all((again[i].image == digits[i].image).all() for i in range(len(digits)))
