"""Figures from what a pass over the samples and the reference left: value, interval, settings."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffit.draws import generator
from diffit.evaluation import intervals
from diffit.evaluation.distances import frechet, kid, kid_of_subsets
from diffit.evaluation.features import Extractor
from diffit.evaluation.intervals import Interval, resamples
from diffit.evaluation.measuring import GROUPS, Measured
from diffit.evaluation.moments import Gaussian
from diffit.evaluation.neighbours import DENSITY_K, PRECISION_K, neighbours
from diffit.evaluation.passport import Figure

Metric = Literal[
    "fd", "sfd", "is", "kid", "precision", "recall", "density", "coverage", "accuracy", "bpd"
]
"""bpd, bits per dimension, is of a model and not of a reference: `diffit.samplers.likelihood`."""
MANIFOLD: tuple[Metric, ...] = ("precision", "recall", "density", "coverage")
METRICS: tuple[Metric, ...] = ("fd", "sfd", "is", "kid", *MANIFOLD, "accuracy")
KID_MOST = 10_000
"""KID compares at most so many images a side: its time grows with their product."""
BOOTSTRAP_DIMS = 256
"""Beyond, a bootstrap of the Frechet distance takes minutes, and the jackknife steps in."""


@dataclass(frozen=True)
class Draws:
    """How intervals and subsets are drawn."""

    count: int
    """Bootstrap resamples; 0: no intervals."""
    seed: int
    kid_subset: int | None
    kid_subsets: int


def frechet_figure(
    ours: Measured, reference: Gaussian, count: int | None, extractor: Extractor, draws: Draws
) -> Figure:
    """The Frechet distance over all images of both sides."""
    value = frechet(ours.pool, reference)
    return _figure(
        extractor, "fd", value, _frechet_interval(ours, reference, value, draws), ours.count, count
    )


def spatial_figure(
    ours: Measured, reference: Gaussian, count: int | None, extractor: Extractor
) -> Figure:
    """sFID (arXiv:2103.03841): the Frechet distance over features that keep their positions."""
    if ours.spatial is None:
        raise ValueError("the pass over the samples did not sum up the spatial features")
    value = frechet(ours.spatial.gaussian(), reference)
    return _figure(extractor, "sfd", value, None, ours.count, count)


def score_figure(ours: Measured, extractor: Extractor) -> Figure:
    """The Inception Score: its mean over ten parts of the samples, in their order."""
    if ours.scores is None:
        raise ValueError("the pass over the samples did not keep what the score needs")
    scores = ours.scores.values()
    value, interval = float(scores.mean()), intervals.of_splits(scores)
    return _figure(extractor, "is", value, interval, ours.count, None, splits=len(scores))


def kid_figure(ours: Tensor, theirs: Tensor, extractor: Extractor, draws: Draws) -> Figure:
    """The kernel distance over the kept features, of all at once or as a mean over subsets."""
    ours, theirs = (_some(side, KID_MOST, draws.seed) for side in (ours, theirs))
    weights = torch.ones(1, len(ours), dtype=torch.float64)
    if draws.count:
        weights = torch.cat((weights, resamples(len(ours), draws.count, draws.seed)))
    value, *replicates = kid(ours, theirs, weights).tolist()
    settings: dict[str, int | float | str] = {"subsets": "none: all pairs of kept images"}
    if draws.kid_subset is not None:
        size, subsets = draws.kid_subset, draws.kid_subsets
        parts = kid_of_subsets(ours, theirs, size=size, subsets=subsets, seed=draws.seed)
        value = float(parts.mean())
        settings = {"subsets": subsets, "subset_size": size}
    # Few samples may give a resample of one image alone, which has no pairs: 0 / 0.
    spread = torch.tensor([value for value in replicates if math.isfinite(value)])
    interval = intervals.of_kid(spread, value) if len(spread) > 1 else None
    return _figure(extractor, "kid", value, interval, len(ours), len(theirs), **settings)


def manifold_figures(
    ours: Tensor, theirs: Tensor, extractor: Extractor, draws: Draws
) -> dict[str, Figure]:
    """Precision, recall, density and coverage over the kept features."""
    found = neighbours(ours, theirs)._asdict()
    return {
        metric: _figure(
            extractor,
            metric,
            float(found[metric].mean()),
            _mean_interval(found[metric], draws),
            len(ours),
            len(theirs),
            k=PRECISION_K if metric in ("precision", "recall") else DENSITY_K,
        )
        for metric in MANIFOLD
    }


def accuracy_figure(
    predicted: Tensor, wanted: Tensor, extractor: Extractor, draws: Draws
) -> Figure:
    """How many samples the classifier puts into the class they were drawn for."""
    right = (predicted == wanted).double()
    value, interval = float(right.mean()), _mean_interval(right, draws)
    return _figure(extractor, "accuracy", value, interval, len(right), None)


def _some(features: Tensor, most: int, seed: int) -> Tensor:
    """All rows, or ``most`` random ones if there are more."""
    if len(features) <= most:
        return features
    picks = generator(seed, len(features), "kid images").choice(len(features), most, replace=False)
    return features[torch.from_numpy(picks)]


def _frechet_interval(
    ours: Measured, reference: Gaussian, value: float, draws: Draws
) -> Interval | None:
    if not draws.count:
        return None
    kept = ours.kept
    if kept is not None and len(kept) == ours.count and kept.shape[1] <= BOOTSTRAP_DIMS:
        return intervals.of_frechet(kept, reference, value, draws=draws.count, seed=draws.seed)
    if ours.count < 2 * GROUPS:
        return None
    return intervals.of_frechet_groups(ours.groups, reference, value)


def _mean_interval(values: Tensor, draws: Draws) -> Interval | None:
    if not draws.count:
        return None
    return intervals.of_mean(values, draws=draws.count, seed=draws.seed)


def _figure(
    extractor: Extractor,
    metric: Metric,
    value: float,
    interval: Interval | None,
    samples: int,
    reference: int | None,
    **settings: int | float | str,
) -> Figure:
    return Figure(
        name=extractor.title(metric),
        metric=metric,
        value=value,
        interval=interval,
        samples=samples,
        reference=reference,
        features=extractor.name,
        protocol=extractor.protocol,
        better="lower" if metric in ("fd", "sfd", "kid") else "higher",
        settings=settings,
    )
