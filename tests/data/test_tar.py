"""Tar files of others: samples are found, or one sentence says what is wrong."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from diffit.data.images import read_image, to_png
from diffit.data.tar import BAD_LABEL, NO_LABEL, TarShard, split_name
from diffit.errors import DataError
from shard_sets import image_of, number_of, samples, write_tar

PNG = to_png(image_of(3))


def shard(tmp_path: Path, members: list[tuple[str, bytes]]) -> TarShard:
    return TarShard(write_tar(tmp_path / "a.tar", members))


def test_members_of_one_name_are_a_sample(tmp_path: Path) -> None:
    found = shard(tmp_path, samples(range(5), classes=3))
    assert [number_of(read_image(found.read(i))) for i in range(len(found))] == [0, 1, 2, 3, 4]
    assert [found.label(i) for i in range(5)] == [0, 1, 2, 0, 1]
    assert found.shown(2) == f"{tmp_path / 'a.tar'}:000002.png"


def test_the_name_ends_at_the_first_dot_of_its_last_part() -> None:
    assert split_name("v1.5/000.seg.PNG") == ("v1.5/000", "seg.png")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b'{"label": 7}', 7), (b'{"cls": 2}', 2), (b'{"caption": "a cat"}', NO_LABEL),
        (b'{"label": "cat"}', BAD_LABEL), (b'{"label": true}', BAD_LABEL), (b"[]", NO_LABEL),
        (b"{" * 60_000, BAD_LABEL), (b'{"label": -3}', BAD_LABEL), (b'{"label": 1e9}', BAD_LABEL),
        (b"\xff", BAD_LABEL), (b'{"label": 9999999999}', BAD_LABEL), (b" " * 70_000, BAD_LABEL),
    ],
)  # fmt: skip
def test_labels_in_json(tmp_path: Path, text: bytes, label: int) -> None:
    assert shard(tmp_path, [("0.png", PNG), ("0.json", text)]).label(0) == label


@pytest.mark.parametrize("text", [b"cat", b"-2", b"", b"1.5", "٣".encode()])
def test_a_label_that_is_no_number_is_noticed(tmp_path: Path, text: bytes) -> None:
    assert shard(tmp_path, [("0.png", PNG), ("0.cls", text)]).label(0) == BAD_LABEL


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_form_are_read(tmp_path: Path, form: int) -> None:
    folder = "d" * 90 + "/" + ("e" * 60 if form == tarfile.USTAR_FORMAT else "ü" * 120)
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name, data in [(f"{folder}/x.png", PNG), (f"{folder}/x.cls", b"4")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = TarShard(tmp_path / "a.tar")
    assert found.shown(0).endswith(f"{folder}/x.png")
    assert found.label(0) == 4
    assert found.read(0) == PNG


def test_links_devices_folders_and_hidden_files_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"x{kind[0]}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        for name in ("._0.png", "0.txt", "0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    found = TarShard(tmp_path / "a.tar")
    assert len(found) == 1
    assert found.passed_over == 2


@pytest.mark.parametrize("name", ["/etc/0.png", "../0.png", "a/../../0.png", "a\\0.png"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="holds the path"):
        shard(tmp_path, [(name, PNG)])


def test_two_images_of_one_sample_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two images for one sample, 0.jpg and 0.png"):
        shard(tmp_path, [("0.jpg", PNG), ("0.png", PNG)])


def test_an_empty_tar_holds_nothing(tmp_path: Path) -> None:
    assert len(shard(tmp_path, [])) == 0


def test_a_tar_cut_anywhere_is_truncated_or_no_tar(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", samples(range(3), classes=2)).read_bytes()
    last = len(whole.rstrip(b"\0"))
    for length in [0, 1, 511, 512, 700, 1024, 1536, last, last // 512 * 512 + 512]:
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match="truncated"):
            TarShard(tmp_path / "cut.tar")


def test_flipped_bits_in_headers_are_noticed(tmp_path: Path) -> None:
    whole = bytearray(write_tar(tmp_path / "a.tar", samples(range(3))).read_bytes())
    whole[1024 + 3] ^= 4
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.raises(DataError, match="damaged at byte 1024"):
        TarShard(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(DataError, match="is no tar file"):
        TarShard(tmp_path / "b.tar")


def test_a_member_that_announces_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.png")
    info.size = 1 << 50
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"truncated: 0.png needs 1125899906842624 bytes"):
        TarShard(tmp_path / "a.tar")


def test_a_huge_extended_header_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 1 << 20
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes((1 << 20) + 1024))
    with pytest.raises(DataError, match="a header of 1048576 bytes"):
        TarShard(tmp_path / "a.tar")


def test_an_image_too_large_to_be_one_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    huge = (1 << 28) + 512
    with (tmp_path / "a.tar").open("wb") as file:
        for name, size in [("0.png", huge), ("1.png", len(PNG))]:
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
            file.write(PNG) if name == "1.png" else file.seek(huge, 1)  # a hole on the disk
        file.truncate(file.tell() // 512 * 512 + 2048)
    found = TarShard(tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"0.png is larger than 256 MiB"):
        found.read(0)
    assert found.read(1) == PNG


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    found = shard(tmp_path, samples(range(3)))
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:1600])
    with pytest.raises(DataError, match="was truncated"):
        found.read(2)
