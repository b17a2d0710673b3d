"""Intervals around a measured figure: what other samples of the same model might have given.

Only the samples are resampled; the reference is fixed, since two models are compared on the same
one. The draws follow from a seed.
"""

import math

import torch
from torch import Tensor

from diffit.config import Settings
from diffit.draws import generator
from diffit.evaluation.distances import frechet_spread
from diffit.evaluation.moments import Gaussian, Moments, merged

LEVEL = 0.95
Z = 1.959964
"""Quantile of the normal distribution at `LEVEL`."""
T_9 = 2.262157
"""Quantile of Student's distribution with 9 degrees of freedom at `LEVEL`, for ten groups."""


class Interval(Settings):
    """A range for a figure, and how it was found."""

    low: float
    high: float
    level: float = LEVEL
    method: str
    """The method and its bias, in words."""


def resamples(count: int, draws: int, seed: int) -> Tensor:
    """(draws, count) how often each of ``count`` images occurs in each bootstrap resample."""
    rows = [
        torch.bincount(
            torch.from_numpy(generator(seed, number, "bootstrap").integers(count, size=count)),
            minlength=count,
        )
        for number in range(draws)
    ]
    return torch.stack(rows).double()


def of_mean(values: Tensor, *, draws: int, seed: int) -> Interval:
    """Percentile bootstrap of the mean of (N,) values per image.

    The images' neighbourhoods, where a figure has them, are held fixed. If all images agree, a
    resample cannot differ: then the exact bound of a proportion takes its place.
    """
    if values.min() == values.max() and float(values[0]) in (0.0, 1.0):
        return _unanimous(float(values[0]), len(values))
    means = resamples(len(values), draws, seed) @ values.double() / len(values)
    low, high = torch.quantile(means, _tails()).tolist()
    method = f"percentile bootstrap over images, {draws} draws, neighbourhoods held fixed"
    return Interval(low=low, high=high, method=method)


def of_splits(scores: Tensor) -> Interval:
    """The mean of (10,) scores of parts +- t standard errors of it."""
    half = T_9 * float(scores.std()) / math.sqrt(len(scores))
    mean = float(scores.mean())
    method = f"Student, over the {len(scores)} parts of the score"
    return Interval(low=mean - half, high=mean + half, method=method)


def of_kid(replicates: Tensor, value: float) -> Interval:
    """``value`` +- z standard deviations of (R,) bootstrap replicates."""
    half = Z * float(replicates.std())
    method = (
        f"normal, bootstrap over samples, {len(replicates)} draws, pairs of an image with itself "
        "left out, reference fixed"
    )
    return Interval(low=value - half, high=value + half, method=method)


def of_frechet(
    features: Tensor, reference: Gaussian, value: float, *, draws: int, seed: int
) -> Interval:
    """``value`` +- z standard deviations over resamples of (N, D) features.

    A resample holds fewer different images, so that its distance is biased upward a second time;
    hence only the spread of the resamples is used, around the figure itself.
    """
    centred = features.double() - features.double().mean(0)
    offset = features.double().mean(0)
    distances = frechet_spread(
        (_weighted(centred, offset, weights) for weights in resamples(len(features), draws, seed)),
        reference,
    )
    half = Z * float(distances.std())
    method = (
        f"normal, bootstrap over samples, {draws} draws, reference fixed; "
        "does not contain the upward bias of a finite number of images"
    )
    return Interval(low=max(0.0, value - half), high=value + half, method=method)


def of_frechet_groups(groups: list[Moments], reference: Gaussian, value: float) -> Interval:
    """``value`` +- t standard errors of the delete-a-group jackknife over groups of moments."""
    without = frechet_spread(
        (merged(g for g in groups if g is not left_out).gaussian() for left_out in groups),
        reference,
    )
    n = len(groups)
    error = math.sqrt((n - 1) / n * float((without - without.mean()).square().sum()))
    method = (
        f"Student, jackknife over {n} groups of samples, reference fixed; "
        "does not contain the upward bias of a finite number of images"
    )
    half = T_9 * error
    return Interval(low=max(0.0, value - half), high=value + half, method=method)


def _weighted(centred: Tensor, offset: Tensor, weights: Tensor) -> Gaussian:
    """Moments of a resample that holds row i of ``centred`` weights[i] times."""
    count = weights.sum()
    mean = weights @ centred / count
    scatter = (centred * weights[:, None]).T @ centred - count * mean.outer(mean)
    return Gaussian(mean + offset, scatter / (count - 1))


def _unanimous(value: float, count: int) -> Interval:
    """Clopper-Pearson: k = n successes leave p^n = alpha/2 at the lower end."""
    margin = 1 - ((1 - LEVEL) / 2) ** (1 / count)
    low, high = (1 - margin, 1.0) if value == 1 else (0.0, margin)
    return Interval(low=low, high=high, method="exact binomial bound, since all images agree")


def _tails() -> Tensor:
    return torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
