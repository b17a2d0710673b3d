"""Data sets that are one array: npz files, and whatever is in memory already."""

import mmap
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from diffit.data.crop import center_crop
from diffit.data.example import MAX_CLASSES, Example
from diffit.data.images import to_array
from diffit.errors import DataError

MAX_UNPACKED_BYTES = 1 << 32
"""Compressed arrays must be unpacked in memory; larger ones are refused before that."""
UNREADABLE = (ValueError, SyntaxError, TokenError, EOFError, zlib.error, RuntimeError, MemoryError)
"""What numpy and zipfile raise at headers that are none, damaged, or encrypted."""
IMAGE_KEYS = ("arr_0", "images")
LABEL_KEYS = ("arr_1", "labels")


class Arrays:
    """Images (N, H, W, C) uint8 with labels, resized when asked for.

    Args:
        images: (N, H, W, C) uint8, C 1 or 3; may be mapped from a file.
        labels: (N,) integers, or None.
        classes: a name for each label value.
        size: side of the square images to give out; None: as they are.
        channels: 1 or 3 to convert; None: as they are.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        classes: Sequence[str] = (),
        *,
        size: int | None = None,
        channels: int | None = None,
    ) -> None:
        _, height, width, own = images.shape
        self._images = images
        self._labels = labels
        self._size = size if size is not None and (size, size) != (height, width) else None
        self.classes = tuple(classes)
        self.shape = (channels or own, size or height, size or width)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> Example:
        pixels, label = self._images[i], self.label(i)
        if self._size is None and pixels.shape[2] == self.shape[0]:
            return Example(np.ascontiguousarray(pixels.transpose(2, 0, 1)), label)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if self._size is not None:
            image = center_crop(image, self._size, name=f"image {i}")
        return Example(to_array(image, self.shape[0]), label)

    def label(self, i: int) -> int | None:
        """The label of example i, without its image."""
        return None if self._labels is None else int(self._labels[i])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": _by_name(self._images)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        images = state["_images"]
        self.__dict__ |= (
            {**state, "_images": np.memmap(**images)} if type(images) is dict else state
        )


def _by_name(images: np.ndarray) -> np.ndarray | dict[str, Any]:
    """What another process needs of an array: a mapped file is only named, not copied."""
    # A part of a mapped array has that array as its base, and does not know where it begins.
    if not isinstance(images, np.memmap) or not isinstance(images.base, mmap.mmap):
        return images
    return {
        "filename": images.filename,
        "dtype": images.dtype,
        "mode": "r",
        "offset": images.offset,
        "shape": images.shape,
        "order": "C" if images.flags.c_contiguous else "F",
    }


def open_npz(
    path: Path, *, size: int | None = None, channels: int | None = None, labels: bool = True
) -> Arrays:
    """An npz with `arr_0` or `images` (N, H, W, C) uint8, and perhaps `arr_1` or `labels` (N,)."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            images = _images(path, archive, _key(path, names, IMAGE_KEYS))
            label_key = _label_key(path, names) if labels else None
            values = None if label_key is None else _labels(path, archive, label_key, len(images))
    except zipfile.BadZipFile:
        raise DataError(f"{path} is no npz file, or a damaged one") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    count = 0 if values is None else int(values.max()) + 1
    return Arrays(images, values, [str(c) for c in range(count)], size=size, channels=channels)


def _key(path: Path, names: list[str], choices: tuple[str, str]) -> str:
    found = [key for key in choices if key in names]
    if not found:
        have = ", ".join(names) or "nothing"
        raise DataError(f"{path} holds {have}; images must be named {' or '.join(choices)}")
    if len(found) > 1:
        raise DataError(f"{path} holds both {' and '.join(found)}; remove one")
    return found[0]


def _label_key(path: Path, names: list[str]) -> str | None:
    return _key(path, names, LABEL_KEYS) if set(names) & set(LABEL_KEYS) else None


def _images(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    images = _member(path, archive, key)
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {key} is {images.dtype}; images must be uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        shape = " x ".join(map(str, images.shape))
        raise DataError(f"{path}: {key} is {shape}; it must be images x height x width x 1 or 3")
    if 0 in images.shape:
        raise DataError(f"{path}: {key} holds no images")
    return images


def _labels(path: Path, archive: zipfile.ZipFile, key: str, count: int) -> np.ndarray:
    values = _member(path, archive, key)
    if values.shape != (count,) or values.dtype.kind not in "iu":
        shape = " x ".join(map(str, values.shape))
        raise DataError(
            f"{path}: {key} is {shape} {values.dtype}; it must be one integer for each of the "
            f"{count} images (or set data.labels: false)"
        )
    if values.min() < 0 or values.max() >= MAX_CLASSES:
        raise DataError(
            f"{path}: {key} runs from {values.min()} to {values.max()}; "
            f"labels are 0 to {MAX_CLASSES - 1}"
        )
    return values


def _member(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """One array: mapped from the file if it is stored as it is, else unpacked within a bound."""
    info = archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key)
    try:
        with archive.open(info) as file:
            shape, fortran, dtype = npy_header(file)
            offset = file.tell()
    except UNREADABLE:
        raise DataError(f"{path}: {key} is no array that can be read") from None
    if dtype.hasobject:
        raise DataError(f"{path}: {key} holds Python objects, which could run code; save numbers")
    bytes_ = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if bytes_ + offset != info.file_size or min(shape, default=1) < 0:
        raise DataError(f"{path}: {key} announces {bytes_} bytes but has {info.file_size - offset}")
    if info.compress_type == zipfile.ZIP_STORED and bytes_:
        start = _data_start(path, info) + offset
        order: Literal["F", "C"] = "F" if fortran else "C"
        return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)
    if bytes_ > MAX_UNPACKED_BYTES:
        raise DataError(
            f"{path}: {key} unpacks to {bytes_ / 2**30:.1f} GiB; save it with np.savez, "
            "uncompressed, so that it can be read from disk"
        )
    with archive.open(info) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of the array in an npy file; one of `UNREADABLE` if none."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"unknown version {version}")
    header: tuple[tuple[int, ...], bool, np.dtype] = read(file)
    return header


def _data_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header of 30 bytes and two texts."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + int(name) + int(extra)
