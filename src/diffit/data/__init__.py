"""Data sets: what is at a path, as images of one shape with labels.

`open_dataset` recognises, and refuses what it would have to guess:

* ``builtin:digits``, ``builtin:patches`` and their held-out parts, ``...-test``;
* a folder or zip with one sub-folder per class, or with images alone;
* a folder or zip with EDM's `dataset.json`;
* an `.npz` with `arr_0` or `images`, and perhaps `arr_1` or `labels`;
* latents: a cache that `diffit data encode` wrote, or that of another project (`layouts`);
* shards: tar files in the WebDataset convention, parquet or Arrow files, here or at an address.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from diffit.config import Settings
from diffit.data.arrays import Arrays, open_npz
from diffit.data.builtin import PREFIX, open_builtin
from diffit.data.example import Dataset, Example
from diffit.data.files import Files, Folder, Zip, is_image
from diffit.data.image_set import ImageSet
from diffit.data.images import Background
from diffit.data.latents import LatentSet
from diffit.data.layouts import holds_mean_std, layout_of, open_latents, recognise
from diffit.data.mix import Mixture, at_hand
from diffit.data.shard_paths import names_shards
from diffit.data.shards import ShardSet, open_shards
from diffit.data.stream_config import StreamConfig
from diffit.errors import DataError

__all__ = [
    "Arrays",
    "DataConfig",
    "Dataset",
    "Example",
    "ImageSet",
    "LatentSet",
    "Mixture",
    "Part",
    "ShardSet",
    "StreamConfig",
    "at_hand",
    "is_npz",
    "open_data",
    "open_dataset",
    "open_files",
    "open_images",
]


class Part(Settings):
    """One data set of a mixture."""

    path: str
    """As `data.path`."""
    weight: float = Field(default=1.0, gt=0)
    """How often its images come, relative to the others."""


class DataConfig(Settings):
    """Which images, and how they are read."""

    path: str = ""
    """A folder, zip or npz of images, a cache of latents, shards (tar, parquet or Arrow files, here
    or at an address), or a set of the package: builtin:digits, builtin:patches."""
    mix: tuple[Part, ...] = ()
    """Several sets instead of one path, each with its weight; for a configuration file."""
    size: int | None = Field(default=None, ge=1, le=4096)
    """Crop the middle square and resize it to this side; needed unless all have one size."""
    channels: Literal[1, 3] | None = None
    """1 converts to grey, 3 to RGB; by default whichever the images have."""
    labels: bool = True
    """Use the classes of the set, where it has any."""
    background: Background = "white"
    """What transparent parts of images become."""
    flip: bool = False
    """Mirror half of the images, left to right. Not for text, digits, or anything with a side."""
    augment: float = Field(default=0.0, ge=0, le=1)
    """Probability of each of EDM's augmentations; the network is told which, so none leaks."""
    workers: int = Field(default=0, ge=0, le=64)
    """Processes that decode images; of use for large sets alone: small ones stay in memory."""
    memory: int = Field(default=512, ge=0)
    """Decoded images are kept in memory if all of them fit into so many MiB."""
    stream: StreamConfig = StreamConfig()
    """How shards are read."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.path and self.mix:
            raise ValueError("data.path and data.mix are both set; keep one of them")
        return self


def open_data(config: DataConfig) -> Dataset:
    """The data set that a configuration names."""
    if not config.mix:
        return _open_one(config.path, config)
    names = [part.path for part in config.mix]
    for name in names:
        if layout_of(name):
            raise DataError(f"{name} holds latents, which data.mix does not take; name images")
    sources = [_open_one(name, config) for name in names]
    return Mixture(sources, [part.weight for part in config.mix], names)


def _open_one(path: str, config: DataConfig) -> Dataset:
    return open_dataset(
        path,
        size=config.size,
        channels=config.channels,
        labels=config.labels,
        background=config.background,
        stream=config.stream,
    )


def open_dataset(
    path: str | Path,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    labels: bool = True,
    background: Background = "white",
    strict: bool = True,
    stream: StreamConfig = StreamConfig(),  # noqa: B008  (frozen)
) -> Dataset:
    """The images or latents at ``path``; DataError if it is unclear what they are.

    Args:
        path: a folder, zip, npz, shards, or `builtin:NAME`.
        size: side of the square that images are cropped and resized to (ADM's centre crop);
            None: they must all have one size.
        channels: 1 (grey) or 3 (RGB) to convert; None: as the images are.
        labels: whether to use the classes of the set.
        background: what transparent parts become.
        strict: whether a damaged image is refused at once if it is among those looked at first;
            each is refused with its name when it is read.
        stream: how shards are read.
    """
    if str(path).startswith(PREFIX):
        name = str(path).removeprefix(PREFIX)
        return open_builtin(name, size=size, channels=channels, labels=labels)
    if names_shards(str(path)):
        return open_shards(
            str(path),
            size=size,
            channels=channels,
            labels=labels,
            background=background,
            config=stream,
        )
    place = Path(path).expanduser()
    if is_npz(path):
        return open_npz(place, size=size, channels=channels, labels=labels)
    if layout := recognise(place):
        return _latents(place, layout, size, labels)
    files = open_files(path)
    if holds_mean_std(files):
        return _latents(place, "edm2", size, labels)
    return ImageSet(
        files,
        size=size,
        channels=channels,
        labels=labels,
        background=background,
        strict=strict,
    )


def open_images(
    path: str | Path,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    labels: bool = True,
    background: Background = "white",
    strict: bool = True,
) -> Dataset:
    """`open_dataset` where latents are of no use: DataError if that is what is at ``path``."""
    if layout_of(str(path)):
        raise DataError(f"{path} holds latents, and images are needed here; name the images")
    return open_dataset(
        path, size=size, channels=channels, labels=labels, background=background, strict=strict
    )


def _latents(place: Path, layout: str, size: int | None, labels: bool) -> LatentSet:
    if size is not None:
        raise DataError(f"{place} holds latents, whose size is fixed; leave data.size out")
    return open_latents(place, layout, labels=labels)


def is_npz(path: str | Path) -> bool:
    """Whether ``path`` names an npz file; DataError if nothing that can be read is there."""
    return _kind(Path(path).expanduser()) == "npz"


def open_files(path: str | Path) -> Files:
    """The image files of the folder or zip at ``path``."""
    place = Path(path).expanduser()
    return Folder(place) if _kind(place) == "folder" else Zip(place)


def _kind(place: Path) -> Literal["folder", "zip", "npz"]:
    try:
        if place.is_dir():
            return "folder"
        exists = place.is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise DataError(f"there is nothing to read at {str(place)!r}; name a folder, zip or npz")
    suffix = place.suffix.lower()
    if suffix == ".zip":
        return "zip"
    if suffix == ".npz":
        return "npz"
    if is_image(place.name):
        raise DataError(f"{place} is one image; name the folder that holds all of them")
    raise DataError(f"{place} is no folder, zip or npz; `diffit data pack` makes a zip of a folder")
