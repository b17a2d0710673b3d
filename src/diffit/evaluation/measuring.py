"""One pass over a set of images: moments of all, features of some, predictions, a hash."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffit.data import Dataset
from diffit.draws import generator
from diffit.evaluation.features import Extractor
from diffit.evaluation.moments import Gaussian, Moments, merged
from diffit.evaluation.protocols import Statistics

GROUPS = 10
"""Parts of the images whose moments are kept apart, for the jackknife."""
PIECES = 8
"""Each group takes at least so many pieces from all over the images, so that groups are alike."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(eq=False)
class Measured:
    """What is known of a set of images after one pass."""

    path: str
    shape: tuple[int, int, int]
    count: int
    classes: tuple[str, ...]
    groups: list[Moments]
    """Moments of the features of all images, in parts."""
    kept: Tensor | None
    """(K, D) float32 features of all images, or of a random subset; None if none were wanted."""
    labels: Tensor | None
    """(N,) int64, None if the images have none."""
    predicted: Tensor | None
    """(N,) int64, the class that the extractor sees; None where it knows no classes."""
    spatial: Moments | None
    hash: str
    """sha256 of shape and pixels in order."""

    @cached_property
    def pool(self) -> Gaussian:
        """Mean and covariance of the features of all images."""
        return merged(self.groups).gaussian()

    def statistics(self, extractor: Extractor) -> Statistics:
        """The moments, to be written to a file."""
        return Statistics(
            pool=self.pool,
            spatial=None if self.spatial is None else self.spatial.gaussian(),
            count=self.count,
            features=extractor.name,
            features_hash=extractor.hash,
            protocol=extractor.protocol,
            path=self.path,
        )


def measure(
    images: Dataset,
    extractor: Extractor,
    *,
    path: str = "",
    keep: int = 0,
    groups: int = GROUPS,
    spatial: bool = False,
    batch: int = 64,
    seed: int = 0,
    name: str = "images",
    progress: Progress | None = None,
) -> Measured:
    """Run the extractor over all images, a batch at a time.

    Memory holds one batch, ``groups`` covariance matrices and the features of ``keep`` images.

    Args:
        images: the set; labels are remembered where it has any.
        path: what the set is called in the result.
        keep: features are kept of all images, or of so many random ones if there are more.
        groups: parts whose moments are kept apart; 1 if no jackknife is wanted.
        spatial: whether to sum up the spatial features too; the extractor must have some.
        seed: decides which features are kept.
        name: of the images, for ``progress``.
    """
    if spatial and not extractor.spatial_dims:
        raise ValueError(f"{extractor.name} has no spatial features")
    count = len(images)
    wanted = _chosen(count, keep, seed)
    parts = _Parts(extractor.dims, groups, piece=max(1, min(batch, count // (groups * PIECES))))
    positions = Moments(extractor.spatial_dims) if spatial else None
    kept, labels, predicted = [], [], []
    digest = hashlib.sha256(repr((count, *images.shape)).encode())
    for first, pixels, classes in _batches(images, batch):
        digest.update(pixels.tobytes())
        features = extractor(torch.from_numpy(pixels))
        pool = features.pool.cpu()
        parts.update(first, pool)
        if positions is not None and features.spatial is not None:
            positions.update(features.spatial)
        kept.append(pool[wanted[first : first + len(pool)]])
        labels += classes
        if features.logits is not None:
            predicted.append(features.logits.argmax(1).cpu())
        if progress:
            progress(name, first + len(pool), count)
    return Measured(
        path=path,
        shape=images.shape,
        count=count,
        classes=tuple(images.classes),
        groups=parts.groups,
        kept=torch.cat(kept) if keep else None,
        labels=None if None in labels else torch.tensor(labels),
        predicted=torch.cat(predicted) if predicted and extractor.classes else None,
        spatial=positions,
        hash=digest.hexdigest(),
    )


class _Parts:
    """Moments in groups: image i belongs to group i // piece % groups."""

    def __init__(self, dims: int, groups: int, *, piece: int) -> None:
        self.groups = [Moments(dims) for _ in range(groups)]
        self._piece = piece

    def update(self, first: int, features: Tensor) -> None:
        """Add (B, D) features of the images ``first``, ``first`` + 1, ..."""
        numbers = torch.arange(first, first + len(features))
        owner = numbers // self._piece % len(self.groups)
        for group in set(owner.tolist()):
            self.groups[group].update(features[owner == group])


def _chosen(count: int, keep: int, seed: int) -> Tensor:
    """(N,) whether the features of each image are kept."""
    chosen = torch.zeros(count, dtype=torch.bool)
    picks = generator(seed, count, "kept images").choice(count, min(keep, count), replace=False)
    chosen[torch.from_numpy(picks)] = True
    return chosen


def _batches(images: Dataset, size: int) -> Iterator[tuple[int, np.ndarray, list[int | None]]]:
    """First number, (B, C, H, W) uint8 pixels, and labels."""
    for first in range(0, len(images), size):
        examples = [images[i] for i in range(first, min(first + size, len(images)))]
        yield first, np.stack([e.image for e in examples]), [e.label for e in examples]
