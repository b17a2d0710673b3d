"""One pass over a set of images: moments of all, features of some, predictions, a hash."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffit.data import Dataset
from diffit.draws import generator
from diffit.evaluation.cache import FeatureCache
from diffit.evaluation.extraction import Reader, read_units
from diffit.evaluation.features import Extractor, Features
from diffit.evaluation.moments import Gaussian, Moments, merged
from diffit.evaluation.protocols import Statistics
from diffit.evaluation.scores import Scores

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
    scores: Scores | None
    """What the Inception Score follows from; None if it was not wanted."""
    hash: str
    """sha256 of the shape and of the images' own sha256 in order."""

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


@dataclass(frozen=True)
class Request:
    """What is wanted of a pass over images, for one extractor.

    Attributes:
        extractor: what turns images into features.
        keep: features are kept of all images, or of so many random ones if there are more.
        groups: parts whose moments are kept apart; 1 if no jackknife is wanted.
        spatial: whether to sum up the spatial features too; the extractor must have some.
        scores: whether to sum up what the Inception Score needs.
    """

    extractor: Extractor
    keep: int = 0
    groups: int = GROUPS
    spatial: bool = False
    scores: bool = False

    def __post_init__(self) -> None:
        if self.spatial and not self.extractor.spatial_dims:
            raise ValueError(f"{self.extractor.name} has no spatial features")


def measure_all(
    images: Dataset,
    requests: Sequence[Request],
    *,
    path: str = "",
    batch: int = 64,
    seed: int = 0,
    processes: int = 1,
    cache: FeatureCache | None = None,
    name: str = "images",
    progress: Progress | None = None,
) -> list[Measured]:
    """One pass over the images for all requests.

    Memory holds some batches, the moments, and the features that are kept.

    Args:
        images: the set; labels are remembered where it has any.
        requests: what is wanted.
        path: what the set is called in the result.
        batch: images whose features are computed at once.
        seed: decides which features are kept.
        processes: that compute features.
        cache: of features.
        name: of the images, for ``progress``.
    """
    count = len(images)
    sums = [_Sums(request, count, batch, seed) for request in requests]
    labels: list[int | None] = []
    digest = hashlib.sha256(repr((count, *images.shape)).encode())
    reader = Reader(images, [r.extractor for r in requests], [r.spatial for r in requests], cache)
    for unit in read_units(reader, size=batch, processes=processes):
        digest.update(b"".join(unit.digests))
        labels += unit.labels
        for one, features in zip(sums, unit.features, strict=True):
            one.update(unit.first, features)
        if progress:
            progress(name, unit.first + len(unit.labels), count)
    known = None if None in labels else torch.tensor(labels)
    return [
        Measured(
            path=path,
            shape=images.shape,
            count=count,
            classes=tuple(images.classes),
            groups=one.parts.groups,
            kept=torch.cat(one.kept) if one.request.keep else None,
            labels=known,
            predicted=torch.cat(one.predicted) if one.predicted else None,
            spatial=one.spatial,
            scores=one.scores,
            hash=digest.hexdigest(),
        )
        for one in sums
    ]


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
    """`measure_all` for one extractor."""
    request = Request(extractor, keep=keep, groups=groups, spatial=spatial)
    (found,) = measure_all(
        images, [request], path=path, batch=batch, seed=seed, name=name, progress=progress
    )
    return found


class _Sums:
    """What grows during a pass, for one request."""

    def __init__(self, request: Request, count: int, batch: int, seed: int) -> None:
        extractor, groups = request.extractor, request.groups
        self.request = request
        self.parts = _Parts(
            extractor.dims, groups, piece=max(1, min(batch, count // (groups * PIECES)))
        )
        self.spatial = Moments(extractor.spatial_dims) if request.spatial else None
        self.scores: Scores | None = None
        self.kept: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self._wanted = _chosen(count, request.keep, seed)
        self._count = count

    def update(self, first: int, features: Features) -> None:
        """Add the features of the images ``first``, ``first`` + 1, ..."""
        pool = features.pool
        self.parts.update(first, pool)
        self.kept.append(pool[self._wanted[first : first + len(pool)]])
        if self.spatial is not None and features.spatial is not None:
            self.spatial.update(features.spatial)
        if features.logits is None:
            return
        if self.request.extractor.classes:
            self.predicted.append(features.logits.argmax(1))
        if self.request.scores:
            if self.scores is None:
                self.scores = Scores(self._count, features.logits.shape[1])
            self.scores.update(first, features.logits)


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
