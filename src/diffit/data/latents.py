"""Data sets of latents: what an autoencoder made of images, computed once and read in training.

A cache of this library is a folder:

    latents.json               what is in it: `LatentIndex`
    latents-00000.safetensors  `moments` (N, k, h, w), `moments_flip` of the mirrored images,
                               `labels` (N,) int64 and `index` (N,) int64, the number in the source
    check.png                  some originals, and below each what the autoencoder makes of it

`diffit.data.layouts` reads and writes the folders of other projects as the same `LatentSet`.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from diffit.config import Settings
from diffit.data.example import MAX_CLASSES, Example
from diffit.data.tensor_files import TensorFiles
from diffit.errors import DataError

INDEX = "latents.json"
FORMAT = "diffit-latents-1"
MAX_INDEX_BYTES = 1 << 26
MAX_SIDE = 4096

Form = Literal["mean-std", "mean-logvar", "point"]
"""What the channels are: mean and standard deviation of the posterior, mean and logarithm of the
variance, or one latent alone (drawn, or of an autoencoder that has no posterior)."""
Pixels = Literal["-1..1", "0..1"]
"""Range of the pixels that the autoencoder was given: EDM2 gives it [0, 1], all others [-1, 1]."""


class Facts(NamedTuple):
    """What holds for all latents of a set."""

    images: int
    shape: tuple[int, int, int]
    """(c, h, w) of one latent."""
    form: Form
    pixels: Pixels
    dtype: np.dtype
    """float16 or float32."""
    mirrored: bool
    """Whether the latents of the mirrored images are there too."""
    classes: tuple[str, ...]
    scaled_by: float = 1.0
    """The factor that is in the numbers already; 1: they are as the autoencoder gives them."""

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """(2c, h, w), or (c, h, w) for the form `point`."""
        c, h, w = self.shape
        return (c if self.form == "point" else 2 * c), h, w


class Storage(Protocol):
    """Latents as they lie in the files of one layout."""

    @property
    def path(self) -> Path:
        """What messages call it."""

    @property
    def facts(self) -> Facts: ...

    def stored(self, i: int, *, mirrored: bool = False) -> np.ndarray:
        """(2c or c, h, w) numbers of image i, unchanged; DataError if they cannot be read."""

    def label(self, i: int) -> int | None:
        """The label of image i."""


class LatentSet:
    """Latents with their labels, as a data set.

    Example i < len is image i; where mirrored latents are stored, example len + i is image i
    mirrored. Its `image` is mean and standard deviation, (2c, h, w), before shift and scale; for
    the form `point` the latent alone, (c, h, w).

    Args:
        storage: the files.
        codec: settings of the autoencoder that made them, as `AutoencoderConfig` has them; None
            where the layout does not say.
        index: what is known besides, for a cache of this library.
        labels: whether to give out labels, where there are any.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        codec: dict[str, Any] | None = None,
        index: "LatentIndex | None" = None,
        labels: bool = True,
    ) -> None:
        self.storage = storage
        self.codec = codec
        self.index = index
        self.classes = storage.facts.classes if labels else ()

    @property
    def facts(self) -> Facts:
        """What holds for all of them."""
        return self.storage.facts

    @property
    def path(self) -> Path:
        """Where they lie."""
        return self.storage.path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a latent: what a network is trained on."""
        return self.facts.shape

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """Shape of the `image` of an example: (2c, h, w), or (c, h, w) without a posterior."""
        return self.facts.stored_shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the `image` of an example."""
        as_stored = self.facts.form != "mean-logvar" and self.facts.scaled_by == 1
        return self.facts.dtype if as_stored else np.dtype(np.float32)

    def __len__(self) -> int:
        return self.facts.images

    def __getitem__(self, i: int) -> Example:
        count = self.facts.images
        values = self.storage.stored(i % count, mirrored=i >= count)
        return Example(moments(values, self.facts), self.label(i))

    def label(self, i: int) -> int | None:
        """The label of example i, without its latent."""
        return self.storage.label(i % self.facts.images) if self.classes else None


def moments(values: np.ndarray, facts: Facts) -> np.ndarray:
    """Stored numbers as mean and standard deviation, (2c, h, w), or as a latent (c, h, w)."""
    if facts.scaled_by != 1:
        return np.asarray(values.astype(np.float32) / np.float32(facts.scaled_by))
    if facts.form != "mean-logvar":
        return values
    mean, logvar = np.split(values.astype(np.float32), 2)
    # The bounds of the autoencoders themselves: beyond them a variance is noise.
    return np.concatenate([mean, np.exp(0.5 * logvar.clip(-30, 20))])


class Statistics(Settings):
    """Of latents drawn from their posteriors, before shift and scale, for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: float
    """Smallest and largest mean of a posterior."""
    high: float
    overall_mean: float
    overall_std: float
    """Of all channels together; LDM's scale factor is 1 / overall_std (arXiv:2112.10752)."""


class Shard(Settings):
    """One file of a cache."""

    file: str = Field(pattern=r"^latents-\d{5,}\.safetensors$")
    images: int = Field(ge=1)
    bytes: int = Field(ge=1)
    blake2b: str


class LatentIndex(Settings):
    """The content of `latents.json`."""

    format: Literal["diffit-latents-1"] = "diffit-latents-1"
    codec: dict[str, Any]
    """`AutoencoderConfig` of the autoencoder, with resolved scale and shift and its checksum."""
    shape: tuple[int, int, int]
    """(c, h, w)."""
    form: Form
    pixels: Pixels = "-1..1"
    dtype: Literal["float16", "float32"]
    mirrored: bool
    scaled_by: float = Field(default=1.0, gt=0)
    count: int = Field(ge=1)
    classes: tuple[str, ...] = Field(default=(), max_length=MAX_CLASSES)
    statistics: Statistics
    shards: tuple[Shard, ...]
    source: str = ""
    """What was encoded or converted, and how."""
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def check(self) -> Self:
        if any(not 1 <= side <= MAX_SIDE for side in self.shape):
            raise ValueError(f"shape {list(self.shape)} must be 1 to {MAX_SIDE} each")
        if sum(shard.images for shard in self.shards) != self.count:
            raise ValueError(f"count is {self.count}, but the shards hold another number")
        return self

    @property
    def facts(self) -> Facts:
        """What holds for all latents."""
        return Facts(
            images=self.count,
            shape=self.shape,
            form=self.form,
            pixels=self.pixels,
            dtype=np.dtype(self.dtype),
            mirrored=self.mirrored,
            classes=self.classes,
            scaled_by=self.scaled_by,
        )


def is_cache(path: Path) -> bool:
    """Whether ``path`` is a cache of this library, whole or damaged."""
    return (path / INDEX).is_file()


def open_cache(path: Path, *, labels: bool = True) -> LatentSet:
    """The cache of this library at ``path``; DataError if it is damaged or incomplete."""
    index = read_index(path)
    return LatentSet(Shards(path, index), codec=index.codec, index=index, labels=labels)


def read_index(path: Path) -> LatentIndex:
    """What `latents.json` says."""
    place = path / INDEX
    try:
        if place.stat().st_size > MAX_INDEX_BYTES:
            raise DataError(f"{place} is larger than {MAX_INDEX_BYTES >> 20} MiB; it is damaged")
        data = json.loads(place.read_bytes())
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise DataError(
                f"{place} has format {data.get('format')!r}, but this version of diffit reads "
                f"{FORMAT!r}; use the version that wrote it, or encode the images again"
            )
        return LatentIndex.model_validate(data)
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise DataError(
            f"{place} is damaged ({where}: {first['msg']}); encode the images again"
        ) from None
    except (ValueError, RecursionError):
        raise DataError(f"{place} is no valid JSON; encode the images again") from None


class Shards:
    """The safetensors files of a cache, read where they lie."""

    def __init__(self, path: Path, index: LatentIndex) -> None:
        self.path = path
        self.facts = index.facts
        self._files = TensorFiles([path / shard.file for shard in index.shards])
        self._ends = np.cumsum([shard.images for shard in index.shards])
        for shard in index.shards:
            _refuse_other_size(path / shard.file, shard.bytes)
        self._labels = self._read_labels() if self.facts.classes else None

    def stored(self, i: int, *, mirrored: bool = False) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        place = i - (int(self._ends[shard - 1]) if shard else 0)
        values = self._files.row(shard, "moments_flip" if mirrored else "moments", place)
        if values.shape != self.facts.stored_shape or values.dtype != self.facts.dtype:
            raise DataError(
                f"{self.path / f'latents-{shard:05d}.safetensors'} is damaged: it does not hold "
                f"{list(self.facts.stored_shape)} of {self.facts.dtype}; encode the images again"
            )
        return values

    def label(self, i: int) -> int | None:
        return None if self._labels is None else int(self._labels[i])

    def _read_labels(self) -> np.ndarray:
        parts = [self._files.whole(k, "labels") for k in range(len(self._ends))]
        return checked_labels(np.concatenate(parts), self.facts, self.path)


def checked_labels(labels: np.ndarray, facts: Facts, path: Path) -> np.ndarray:
    """Labels (N,), one for each image; DataError if they are not."""
    last = len(facts.classes) - 1
    whole = labels.shape == (facts.images,) and labels.dtype.kind in "iu"
    if not whole or labels.min() < 0 or labels.max() > last:
        raise DataError(
            f"{path} is damaged: its labels are not an integer from 0 to {last} for each of the "
            f"{facts.images} images"
        )
    return labels


def _refuse_other_size(file: Path, expected: int) -> None:
    try:
        size = file.stat().st_size
    except OSError:
        raise DataError(f"{file} is missing; restore it, or encode the images again") from None
    if size != expected:
        raise DataError(
            f"{file} is damaged: it has {size} bytes instead of {expected}; restore it, or encode "
            "the images again"
        )
