"""Kinds of bad data, each answered by one sentence that names it."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffit.cli import main
from diffit.data import open_dataset
from diffit.data.images import read_image
from diffit.errors import DataError

BAD: dict[str, tuple[Callable[[Path], object], str]] = {}
"""Name to (makes it in a folder and returns what `open_dataset` gets, part of the answer)."""


def bad(answer: str) -> Callable:
    def note(make: Callable[[Path], object]) -> Callable[[Path], object]:
        BAD[make.__name__.replace("_", " ")] = (make, answer)
        return make

    return note


def picture(size=(8, 8), mode="RGB", value=7) -> Image.Image:
    return Image.new(mode, size, value if mode in ("L", "I;16", "I", "F") else (value,) * 3)


def png(image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, "PNG", **options)
    return buffer.getvalue()


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(root: Path, files: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(root / "set.zip", "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return root / "set.zip"


def npz(root: Path, **arrays) -> Path:
    np.savez(root / "set.npz", **arrays)
    return root / "set.npz"


def index(entries: object) -> dict[str, bytes]:
    return {"a.png": png(), "b.png": png(), "dataset.json": json.dumps(entries).encode()}


IMAGES = np.zeros((3, 8, 8, 3), np.uint8)

# --- paths


@bad("there is nothing to read at '/nowhere/at/all'; name a folder, zip or npz")
def no_such_path(root):
    return "/nowhere/at/all"


@bad("there is nothing to read at")
def a_path_with_a_nul_byte(root):
    return "a\0b"


@bad("there is no builtin:digit; did you mean 'digits'?")
def misspelt_builtin(root):
    return "builtin:digit"


@bad("one.png is one image; name the folder that holds all of them")
def a_single_image(root):
    return put(root, {"one.png": png()}) / "one.png"


@bad("set.tar is truncated: it ends at byte 3 without a last block; restore it")
def a_tar(root):
    return put(root, {"set.tar": b"tar"}) / "set.tar"


# --- folders


@bad("holds no images (PNG, JPEG, WebP, BMP, GIF, TIFF or PPM); name a folder or zip that does")
def an_empty_folder(root):
    return root


@bad("holds no images (PNG, JPEG, WebP, BMP, GIF, TIFF or PPM), only 2 other files such as a.txt")
def a_folder_without_images(root):
    return put(root, {"a.txt": b"a", "b.csv": b"b"})


@bad("holds no images")
def a_folder_of_hidden_images(root):
    return put(root, {".a.png": png(), "__MACOSX/b.png": png(), ".git/c.png": png()})


@bad("holds images both directly and in sub-folders (cat/b.png); separate them, or take them all")
def images_beside_class_folders(root):
    return put(root, {"a.png": png(), "cat/b.png": png()})


@bad("holds images in folders inside folders (test/cat/b.png); name the folder whose sub-folders")
def class_folders_one_level_too_deep(root):
    return put(root, {"train/cat/a.png": png(), "test/cat/b.png": png()})


@bad("cat/loop is a link to a folder that holds it; remove it")
def a_link_that_loops(root):
    put(root, {"cat/a.png": png()})
    (root / "cat" / "loop").symlink_to(root)
    return root


@bad("first line\\nsecond line.png is empty; remove it or restore it")
def a_name_of_two_lines(root):
    return put(root, {"first line\nsecond line.png": b""})


@bad("sub-folder 'dog' holds files but no images that can be read; remove it, or convert them")
def a_class_without_readable_images(root):
    return put(root, {"cat/a.png": png(), "dog/b.heic": b"heic"})


# --- dataset.json


@bad("dataset.json is no valid JSON")
def a_broken_index(root):
    return put(root, {"a.png": png(), "dataset.json": b'{"labels": ['})


@bad("dataset.json is no valid JSON")
def an_index_nested_without_end(root):
    return put(root, {"a.png": png(), "dataset.json": b"[" * 100_000})


@bad('dataset.json must be {"labels": [[file, label], ...]}')
def an_index_without_labels(root):
    return put(root, index({"images": 2}))


@bad('dataset.json: "labels" must be a list of [file, label]')
def an_index_that_is_a_table(root):
    return put(root, index({"labels": {"a.png": 0}}))


@bad('dataset.json: ["a.png", 0.5] must be [file, label], the label an integer')
def a_label_that_is_no_integer(root):
    return put(root, index({"labels": [["a.png", 0.5]]}))


@bad("dataset.json: the label of a.png is -1; labels are 0 to 99999")
def a_negative_label(root):
    return put(root, index({"labels": [["a.png", -1], ["b.png", 0]]}))


@bad("dataset.json has no label for b.png; add it, or data.labels: false")
def an_image_without_a_label(root):
    return put(root, index({"labels": [["a.png", 0]]}))


@bad("dataset.json names c.png, which is not there")
def a_label_without_an_image(root):
    return put(root, index({"labels": [["a.png", 0], ["b.png", 1], ["c.png", 1]]}))


@bad("dataset.json gives a.png two labels")
def an_image_with_two_labels(root):
    return put(root, index({"labels": [["a.png", 0], ["a.png", 1], ["b.png", 1]]}))


@bad('dataset.json: "classes" has 1 names, but labels go to 1')
def too_few_class_names(root):
    return put(root, index({"labels": [["a.png", 0], ["b.png", 1]], "classes": ["cat"]}))


# --- single images (the first is read when the set is opened)


@bad("a.png is empty; remove it or restore it")
def an_empty_file(root):
    return put(root, {"a.png": b""})


@bad("a.png is no image that can be read (PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM)")
def text_named_png(root):
    return put(root, {"a.png": b"this is text"})


@bad("a.png is damaged: ")
def a_truncated_png(root):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return put(root, {"a.png": png(Image.fromarray(noise))[:5000]})


@bad("a.jpg is damaged: image file is truncated")
def a_truncated_jpeg(root):
    picture((256, 256)).save(root / "a.jpg", quality=95)
    (root / "a.jpg").write_bytes((root / "a.jpg").read_bytes()[:-200])
    return root


@bad("a.png is damaged: ")
def a_png_with_a_flipped_bit(root):
    data = bytearray(png(picture((64, 64))))
    data[data.index(b"IDAT") + 8] ^= 0x40
    return put(root, {"a.png": bytes(data)})


@bad("a.gif has 2 frames; save the ones you want as single images")
def an_animation(root):
    frames = [picture(mode="L", value=v) for v in (0, 255)]
    frames[0].save(root / "a.gif", save_all=True, append_images=frames[1:])
    return root


@bad("a.tif has pixels of mode F; save it as 8-bit grey or RGB")
def floating_point_pixels(root):
    picture(mode="F").save(root / "a.tif")
    return root


@bad("a.tif has pixels of mode I; save it as 8-bit grey or RGB")
def pixels_of_32_bits(root):
    picture(mode="I").save(root / "a.tif")
    return root


@bad("a.png has more than 89 million pixels; scale it down first")
def a_decompression_bomb(root):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return put(root, {"a.png": b"\x89PNG\r\n\x1a\n" + body})


@bad("a.png is larger than 256 MiB; scale it down first")
def a_huge_file(root):
    with (root / "a.png").open("wb") as file:
        file.truncate((1 << 28) + 1)  # sparse: takes no room on the disk
    return root


@bad("a.png is no ordinary file; remove it")
def a_pipe(root):
    os.mkfifo(root / "a.png")
    return root


@bad("a.png cannot be read: No such file or directory")
def a_dangling_link(root):
    (root / "a.png").symlink_to(root / "gone.png")
    return root


# --- zips


@bad("set.zip is no zip archive, or a truncated one")
def a_truncated_zip(root):
    path = zipped(root, {"a.png": png()})
    path.write_bytes(path.read_bytes()[:-30])
    return path


@bad("set.zip is no zip archive, or a truncated one")
def text_named_zip(root):
    return put(root, {"set.zip": b"this is text"}) / "set.zip"


@bad("set.zip holds the path '../a.png'; repack it")
def a_zip_that_points_outside(root):
    return zipped(root, {"../a.png": png()})


@bad("set.zip holds a.png twice; repack it")
def a_zip_with_one_name_twice(root):
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("b.png", png())
    data = (root / "set.zip").read_bytes().replace(b"b.png", b"a.png")
    (root / "set.zip").write_bytes(data)
    return root / "set.zip"


@bad("set.zip:a.png is encrypted; repack the archive without a password")
def an_encrypted_zip(root):
    path = zipped(root, {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    data[6] |= 1
    path.write_bytes(bytes(data))
    return path


@bad("set.zip:a.png is damaged in the archive: ")
def a_zip_with_a_flipped_bit(root):
    path = zipped(root, {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(bytes(data))
    return path


@bad("set.zip:a.png is larger than 256 MiB; scale it down first")
def a_zip_bomb(root):
    path = zipped(root, {"a.png": png()})
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24  # the announced size in the central directory
    data[place : place + 4] = struct.pack("<I", 1 << 31)
    path.write_bytes(bytes(data))
    return path


@bad("set.zip holds no images")
def an_empty_zip(root):
    return zipped(root, {})


# --- npz


@bad("set.npz is no npz file, or a damaged one")
def text_named_npz(root):
    return put(root, {"set.npz": b"this is text"}) / "set.npz"


@bad("set.npz holds mu, sigma; images must be named arr_0 or images")
def an_npz_of_statistics(root):
    return npz(root, mu=np.zeros(4), sigma=np.eye(4))


@bad("set.npz holds both arr_0 and images; remove one")
def an_npz_with_images_twice(root):
    return npz(root, arr_0=IMAGES, images=IMAGES)


@bad("arr_0 is float32; images must be uint8, 0 to 255")
def an_npz_of_floats(root):
    return npz(root, arr_0=IMAGES.astype(np.float32))


@bad("arr_0 is 3 x 3 x 8 x 8; it must be images x height x width x 1 or 3")
def an_npz_with_channels_first(root):
    return npz(root, arr_0=IMAGES.transpose(0, 3, 1, 2))


@bad("arr_0 holds no images")
def an_npz_without_images(root):
    return npz(root, arr_0=IMAGES[:0])


@bad("arr_1 is 2 int64; it must be one integer for each of the 3 images")
def an_npz_with_too_few_labels(root):
    return npz(root, arr_0=IMAGES, arr_1=np.zeros(2, np.int64))


@bad("arr_1 runs from -1 to 1; labels are 0 to 99999")
def an_npz_with_negative_labels(root):
    return npz(root, arr_0=IMAGES, arr_1=np.array([0, 1, -1]))


@bad("arr_0 holds Python objects, which could run code; save numbers")
def an_npz_with_a_pickle(root):
    return npz(root, arr_0=np.array([{"run": "code"}], dtype=object))


@bad("arr_0 announces 805306368 bytes but has 192")
def an_npz_that_announces_too_much(root):
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 22, 8, 8, 3)}
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, header)
    with zipfile.ZipFile(root / "set.npz", "w") as archive:
        archive.writestr("arr_0.npy", array.getvalue() + bytes(192))
    return root / "set.npz"


@bad("arr_0 is no array that can be read")
def an_npz_with_a_broken_header(root):
    with zipfile.ZipFile(root / "set.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00\x08\x00{'descr'" + bytes(100))
    return root / "set.npz"


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, answer = BAD[name]
    with pytest.raises(DataError) as refusal:
        open_dataset(make(tmp_path))
    text = str(refusal.value)
    assert answer in text
    assert "\n" not in text
    assert len(text.removeprefix(str(tmp_path))) < 250


@pytest.mark.parametrize("name", ["an empty folder", "a truncated jpeg", "a zip bomb"])
def test_the_command_answers_bad_data_in_one_line(name: str, tmp_path: Path, capsys) -> None:
    make, answer = BAD[name]
    path = make(tmp_path)
    assert main(["data", "pack", str(path), str(tmp_path / "out.zip")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("diffit: ")
    assert answer in printed
    assert printed.count("\n") == 1


# --- what is only met when an image is read


def later(root: Path, data: bytes, **options) -> str:
    """The answer when the second of two images is bad."""
    put(root, {"a.png": png(), "b.png": data})
    dataset = open_dataset(root, channels=3, **options)
    dataset[0]
    with pytest.raises(DataError) as refusal:
        dataset[1]
    return str(refusal.value)


def test_a_damaged_image_in_the_set_is_named_when_it_is_read(tmp_path: Path) -> None:
    assert f"{tmp_path}/b.png is no image that can be read" in later(tmp_path, b"text")


def test_an_image_of_another_size_is_named_with_the_way_out(tmp_path: Path) -> None:
    answer = later(tmp_path, png(picture((9, 8))))
    assert "b.png is 9 x 8, the first image is 8 x 8; set data.size to crop and resize" in answer


def test_colour_in_a_grey_set_is_named_with_the_way_out(tmp_path: Path) -> None:
    files = {f"{i:03d}.png": png(picture(mode="L")) for i in range(200)}
    put(tmp_path, {**files, "001.png": png()})
    dataset = open_dataset(tmp_path)  # the images looked at first are all grey
    with pytest.raises(DataError, match=r"001\.png has colour.*set data\.channels: 3"):
        dataset[1]


def test_an_image_too_narrow_to_enlarge_is_refused(tmp_path: Path) -> None:
    answer = later(tmp_path, png(picture((4000, 1))), size=256)
    assert "b.png is 4000 x 1, too narrow to become 256 px" in answer


def test_16_bit_transparency_is_refused(tmp_path: Path) -> None:
    picture(mode="I;16").save(tmp_path / "a.png", transparency=3)
    with pytest.raises(DataError, match="16-bit grey with transparency; save it without"):
        read_image(tmp_path / "a.png")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied; mend its permissions"):
        open_dataset(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, {"cat/a.png": png()})
    (tmp_path / "cat").chmod(0)
    try:
        with pytest.raises(DataError, match="cat cannot be read: Permission denied"):
            open_dataset(tmp_path)
    finally:
        (tmp_path / "cat").chmod(0o700)
