"""A data set as one zip of PNG files with EDM's `dataset.json`: quick to read, easy to move."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffit.data import ImageSet, ShardSet, open_dataset, open_images
from diffit.data.example import Dataset, Follow
from diffit.data.images import Background, read_image, write_atomic, write_png
from diffit.data.labels import INDEX
from diffit.errors import DataError

PER_FOLDER = 1000


class Packed(NamedTuple):
    """What a zip was made of."""

    images: int
    bytes: int
    left_out: tuple[str, ...]
    """Why each image that was left out could not be read."""


def pack(
    source: str,
    out: Path,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    labels: bool = True,
    background: Background = "white",
    skip_unreadable: bool = False,
    follow: Follow = iter,
) -> Packed:
    """Write ``source`` as ``out``; after an interruption the same call goes on where it stopped.

    Images are made one by one in `OUT.partial`; the zip appears under its name when it is whole
    and has been read back.
    """
    if out.suffix.lower() != ".zip":
        raise DataError(f"{out} must end in .zip")
    if out.exists():
        raise DataError(f"{out} exists already; name a new file or remove it")
    if not out.parent.is_dir():
        raise DataError(f"there is no folder {out.parent}; make it first")
    dataset = open_images(
        source, size=size, channels=channels, labels=labels, background=background, strict=False
    )
    plan = {
        "source": str(Path(source).absolute()),
        "size": size,
        "channels": channels,
        "labels": labels,
        "background": background,
        "images": len(dataset),
        "names": digest_of(dataset),
    }
    partial = out.with_name(out.name + ".partial")
    try:
        _begin(partial, plan)
        left_out = _make_images(dataset, partial, skip_unreadable, follow)
        images = _assemble(dataset, partial, out)
    except OSError as error:
        raise DataError(
            f"{partial} cannot be written: {error.strerror}; the same command goes on from there"
        ) from None
    shutil.rmtree(partial, ignore_errors=True)
    return Packed(images, out.stat().st_size, tuple(left_out))


def digest_of(dataset: Dataset) -> str:
    """Of the names of the images, or of the shards that hold them."""
    names: Sequence[str] = []
    if isinstance(dataset, ImageSet):
        names = dataset.files.images
    elif isinstance(dataset, ShardSet):
        names = [f"{p.address} {p.bytes} {p.blake2b}" for p in dataset.copies.places]
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def _begin(partial: Path, plan: dict[str, Any]) -> None:
    """A new folder for the images, or the one that an interrupted call left."""
    place = partial / "plan.json"
    if not place.exists():
        partial.mkdir(exist_ok=True)
        write_atomic(place, json.dumps(plan).encode())
        return
    try:
        earlier = dict(json.loads(place.read_bytes()))
    except (ValueError, TypeError):
        raise DataError(f"{place} is damaged; remove {partial}") from None
    for key, value in plan.items():
        if earlier.get(key) != value:
            raise DataError(
                f"{partial} was begun with another {key} ({earlier.get(key)}, now {value}); "
                f"remove it or name another output"
            )


def _member(i: int) -> str:
    return f"{i // PER_FOLDER:05d}/img{i:08d}.png"


def _make_images(dataset: Dataset, partial: Path, skip: bool, follow: Follow) -> list[str]:
    left_out = []
    for i in follow(range(len(dataset))):
        path = partial / _member(i)
        if path.exists():
            continue
        try:
            image = dataset[i].image
        except DataError as error:
            if not skip:
                raise DataError(f"{error} (or leave such out: --skip-unreadable)") from None
            left_out.append(str(error))
            continue
        path.parent.mkdir(exist_ok=True)
        write_png(path, image)
    return left_out


def _assemble(dataset: Dataset, partial: Path, out: Path) -> int:
    """All images as one zip, read back before it gets its name; how many there are."""
    whole = partial / "whole.zip"
    labels: list[tuple[str, int | None]] = []
    # Stored, since PNG is compressed already; the default date makes equal sets equal files.
    with whole.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for i, path in _made(dataset, partial):
            archive.writestr(zipfile.ZipInfo(_member(i)), _checked(path, dataset.shape))
            labels.append((_member(i), dataset.label(i)))
        if not labels:
            raise DataError("none of the images could be read; `diffit data inspect` says why")
        index: dict[str, Any] = {"labels": None}
        if dataset.classes:
            index = {"labels": labels, "classes": dataset.classes}
        archive.writestr(zipfile.ZipInfo(INDEX), json.dumps(index))
    _verify(whole, dataset, len(labels))
    with whole.open("rb+") as written:
        os.fsync(written.fileno())
    whole.replace(out)
    return len(labels)


def _made(dataset: Dataset, partial: Path) -> Iterator[tuple[int, Path]]:
    for i in range(len(dataset)):
        path = partial / _member(i)
        if path.exists():
            yield i, path


def _checked(path: Path, shape: tuple[int, int, int]) -> bytes:
    """The bytes of one finished image, after a look whether a crash has left it whole."""
    try:
        whole = read_image(path).shape == shape
    except DataError:
        whole = False
    if not whole:
        path.unlink(missing_ok=True)
        raise DataError(f"{path} was damaged and has been removed; run the same command again")
    return path.read_bytes()


def _verify(path: Path, dataset: Dataset, count: int) -> None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    again = open_dataset(path)
    if damaged or len(again) != count or again.shape != dataset.shape:
        raise DataError(f"{path} was not written as it should; check the disk and run again")
    if again.classes != dataset.classes:
        raise DataError(f"{path} has lost its classes; check the disk and run again")
