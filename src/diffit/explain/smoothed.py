"""The smoothed classifier in use: predict, certify, map and region of one image.

Each draws its copies unit by unit and holds the sums alone. The number of copies is fixed before
the first is drawn; a count ends early only where no outcome of the rest could change the decision,
since a look at the interim bound in order to stop would void the confidence.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.explain.bounds import Bound, Moments, Top
from diffit.explain.certify import (
    LabelCertificate,
    Prediction,
    certification_is_decided,
    certify_votes,
    leader,
    predict_votes,
    prediction_is_decided,
)
from diffit.explain.region import (
    CLASS_AS_CONSTANT,
    CLASS_OF_EACH_SAMPLE,
    NO_CLASS,
    FaithfulRegion,
    certify_estimate,
    faithful_region,
)
from diffit.explain.smoothing import Job, MapSums, Purpose, Smoothed, Votes
from diffit.explain.units import check_images

Run = Callable[[Iterator[Job]], Iterator[Any]]
"""Does jobs and gives their results in the jobs' order: `Smoothed.run`, or several processes."""

Tell = Callable[[int], None]
"""Told after each unit how many copies it had."""


@dataclass(frozen=True)
class SmoothedMap:
    """The mean of the maps of noisy copies."""

    moments: Moments
    """Mean (sum 1) and variance of each entry, and how many maps."""
    shape: tuple[int, ...]
    """(T,) for tokens, (H, W) for pixels."""
    label: int | None
    """The class that is explained; None: of each copy the class it is taken for."""

    @property
    def mean(self) -> Tensor:
        """The map, in its shape, float64 with sum 1."""
        return torch.from_numpy(self.moments.mean.reshape(self.shape))

    @property
    def std(self) -> Tensor:
        """How much each entry varies from copy to copy, in the map's shape."""
        return torch.from_numpy(np.sqrt(self.moments.variance).reshape(self.shape))


def votes(
    smoothed: Smoothed,
    image: Tensor,
    n: int,
    purpose: Purpose,
    *,
    number: int = 0,
    run: Run | None = None,
    tell: Tell | None = None,
) -> Iterator[Votes]:
    """The votes of the first copies of an image, after each unit, until all n are counted.

    Args:
        smoothed: the classifier behind noise.
        image: (C, H, W) in [-1, 1].
        n: how many copies.
        purpose: what for; not "maps".
        number: which image it is, so that no two images share their noise.
        run: does the units in other processes.
        tell: told of each unit.
    """
    counts, probabilities, drawn = 0, 0, 0
    for part in _units(smoothed, image, n, purpose, number, run, tell):
        counts, probabilities = counts + part.counts, probabilities + part.probabilities
        drawn += part.n
        yield Votes(counts, probabilities, drawn)


def predict(
    smoothed: Smoothed,
    image: Tensor,
    *,
    n: int = 1000,
    alpha: float = 0.001,
    number: int = 0,
    run: Run | None = None,
    tell: Tell | None = None,
) -> Prediction:
    """The smoothed label of a (C, H, W) image, or an abstention.

    Args:
        n: copies.
        alpha: probability of another label than the smoothed classifier's.
        number, run, tell: as for `votes`.
    """
    counts: tuple[int, ...] = ()
    for so_far in votes(smoothed, image, n, "prediction", number=number, run=run, tell=tell):
        counts = tuple(so_far.counts.tolist())
        if prediction_is_decided(counts, n, alpha=alpha):
            break
    found = predict_votes(counts, alpha=alpha, n=n)
    return replace(found, seed=smoothed.smoothing.seed, number=number)


def certify(
    smoothed: Smoothed,
    image: Tensor,
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    enough: float | None = None,
    number: int = 0,
    run: Run | None = None,
    tell: Tell | None = None,
) -> LabelCertificate:
    """The smoothed label of a (C, H, W) image and a radius within which it stays the same.

    Args:
        n0: copies by whose votes the class is guessed; they are not used again.
        n: fresh copies whose votes for that class are counted.
        alpha: error probability of the certificate.
        enough: an l2 radius for pixels in [-1, 1] that suffices: the count ends once it is
            certain to reach it, and may then state a smaller radius than the full one would.
        number, run, tell: as for `votes`.
    """
    sigma = smoothed.smoothing.sigma
    draw = partial(votes, smoothed, image, number=number, run=run, tell=tell)
    *_, guess = draw(n0, "selection")
    selected, hits, drawn = leader(guess.counts.tolist()), 0, 0
    for so_far in draw(n, "estimation"):
        hits, drawn = int(so_far.counts[selected]), so_far.n
        if certification_is_decided(hits, drawn, n, sigma=sigma, alpha=alpha, enough=enough):
            break
    found = certify_votes(
        selected, hits, n, sigma=sigma, alpha=alpha, dimensions=image.numel(), drawn=drawn
    )
    return replace(found, seed=smoothed.smoothing.seed, number=number)


def mean_map(
    smoothed: Smoothed,
    image: Tensor,
    label: int | None,
    *,
    m: int = 64,
    number: int = 0,
    run: Run | None = None,
    tell: Tell | None = None,
) -> SmoothedMap:
    """The smoothed map of a (C, H, W) image.

    Args:
        label: the class to explain, one for all copies; None explains each copy for the class it
            is taken for, which is also covered by a certificate.
        m: copies.
        number, run, tell: as for `votes`.
    """
    classes = smoothed.classifier.classes
    if label is not None and not 0 <= label < classes:
        raise UsageError(f"class {label} is none of this classifier's 0 to {classes - 1}")
    parts = _units(smoothed, image, m, "maps", number, run, tell, label)
    sums: MapSums = reduce(MapSums.plus, parts)
    return SmoothedMap(sums.moments(), sums.shape, label)


def region(
    smoothed: Smoothed,
    found: SmoothedMap,
    *,
    dimensions: int,
    k: int,
    beta: float,
    gamma: float,
    order: float = 2.0,
    eta: float | None = 0.05,
    of: Top = "smoothed",
    bound: Bound = "bernstein",
    label: LabelCertificate | None = None,
    by_class: bool = True,
    number: int = 0,
) -> FaithfulRegion:
    """The faithful region of an image from its smoothed map.

    Args:
        found: of `mean_map`.
        dimensions: C * H * W of the image.
        k, beta: the explanation keeps a share beta of its k largest entries.
        gamma, order: the class probabilities differ by at most gamma in this Renyi divergence.
        eta, of, bound: confidence of the explanation's radius: see `certify_estimate`.
        label: of `certify`, if the class explained is to be the smoothed prediction in all of the
            region.
        by_class: whether the method looks at the class at all; where not, the map holds for the
            prediction whatever it is.
        number: which image it is, for the record.
    """
    if label is not None and label.selected != found.label:
        raise ValueError(
            f"the map explains class {found.label}, the certificate is of class {label.selected}"
        )
    certificate = certify_estimate(
        found.moments,
        k,
        beta,
        sigma=smoothed.smoothing.sigma,
        dimensions=dimensions,
        eta=eta,
        of=of,
        bound=bound,
        explained=_explained(found, by_class),
    )
    certificate = replace(certificate, seed=smoothed.smoothing.seed, number=number)
    return faithful_region(certificate, gamma=gamma, alpha=order, label=label)


def _explained(found: SmoothedMap, by_class: bool) -> str:
    if not by_class:
        return NO_CLASS
    return CLASS_OF_EACH_SAMPLE if found.label is None else CLASS_AS_CONSTANT


def _units(
    smoothed: Smoothed,
    image: Tensor,
    n: int,
    purpose: Purpose,
    number: int,
    run: Run | None,
    tell: Tell | None,
    label: int | None = None,
) -> Iterator[Any]:
    """What each unit of the first n copies says, in order."""
    if n < 1:
        raise ValueError(f"{n} copies of an image say nothing; draw at least 1")
    if image.ndim != 3:
        raise ValueError(f"image is {tuple(image.shape)}; one image is (C, H, W)")
    check_images(image[None])
    size = smoothed.smoothing.unit
    copies = (range(first, min(first + size, n)) for first in range(0, n, size))
    jobs = (Job(image, number, purpose, some, label) for some in copies)
    for part in (run or smoothed.run)(jobs):
        if tell is not None:
            tell(part.n)
        yield part
