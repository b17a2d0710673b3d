"""What a finite number of maps says about their mean: a box that holds it with confidence 1 - eta.

Empirical Bernstein bounds (Maurer and Pontil, arXiv:0907.3740, Theorem 4) follow the variance of
each entry; Hoeffding's are of one width for all. Either holds for all entries and both sides at
once (Bonferroni), so that anything may be read off the box, the best order and direction included.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from diffit.explain.overlap import Leaving, must_leave, top_k

Bound = Literal["bernstein", "hoeffding"]

Top = Literal["smoothed", "reported"]
"""Whose top k is meant: that of the smoothed map, which the estimate has to find first, or the one
that is reported, right or wrong."""

MOST = 1 << 40
"""More samples than this are as good as never."""


class Moments(NamedTuple):
    """What is known of the maps of ``n`` noisy images, each with entries in [0, 1].

    Attributes:
        mean: (T,) float64.
        variance: (T,) float64, unbiased.
        n: how many maps.
    """

    mean: np.ndarray
    variance: np.ndarray
    n: int


class Box(NamedTuple):
    """Bounds of every entry of the expected map, (T,) each."""

    lower: np.ndarray
    upper: np.ndarray


def half_width(
    variance: np.ndarray | float, n: int, tokens: int, eta: float, bound: Bound = "bernstein"
) -> np.ndarray:
    """Half the width of the box, for each entry of this variance.

    Args:
        variance: of single maps; Hoeffding's bound does not look at it.
        n: maps that were averaged; below 2 nothing is known.
        tokens: entries of a map; each has two sides, and each side may fail with eta / (2 tokens).
        eta: error probability of the whole box.
        bound: which inequality.
    """
    if not 0 < eta < 1:
        raise ValueError(f"eta is {eta:g}; an error probability lies between 0 and 1")
    variance = np.asarray(variance, dtype=np.float64)
    side = eta / (2 * tokens)
    if n < 2:
        return np.full_like(variance, math.inf)
    if bound == "hoeffding":
        return np.full_like(variance, math.sqrt(math.log(1 / side) / (2 * n)))
    log = math.log(2 / side)
    return np.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1))


def box(moments: Moments, eta: float, bound: Bound = "bernstein") -> Box:
    """The box that holds the expected map with confidence 1 - eta."""
    mean = moments.mean
    half = half_width(moments.variance, moments.n, mean.size, eta, bound)
    return Box(np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1))


def worst_exchange(
    moments: Moments, k: int, beta: float, limits: Box, *, top: Top = "smoothed"
) -> Leaving | None:
    """The exchange that the worst map in the box would make: see `overlap.leaving`.

    The least divergence grows with every entry that must go down and falls with every one that
    must go up, so that the worst are the k0 smallest lower bounds of the estimated top k, and the
    k0 largest upper bounds of the rest.

    Returns:
        The exchange; None if no exchange lowers the overlap below beta. One that costs nothing
        says that nothing is certain: for the top k of the smoothed map, also where the box does
        not tell the top k from the rest.
    """
    chosen = top_k(moments.mean, k)
    k0 = must_leave(k, beta)
    if k0 > min(k, moments.mean.size - k):
        return None
    rest = np.setdiff1d(np.arange(moments.mean.size), chosen)
    down = np.sort(limits.lower[chosen])[:k0][::-1]
    up = np.sort(limits.upper[rest])[::-1][:k0]
    if top == "smoothed" and down.min() <= up.max():
        return Leaving(np.zeros_like(up), up)  # already below: that costs nothing
    return Leaving(down, up)


def samples_needed(
    pilot: Moments,
    k: int,
    beta: float,
    *,
    eta: float,
    bound: Bound = "bernstein",
    top: Top = "smoothed",
) -> int | None:
    """How many maps a radius above 0 needs, if mean and variance are those of the pilot.

    None where no number would do: entries that must not be mistaken for each other are equal.
    The pilot's own maps must not be used again, since their number was not fixed beforehand.
    """

    def enough(n: int) -> bool:
        limits = box(pilot._replace(n=n), eta, bound)
        exchange = worst_exchange(pilot, k, beta, limits, top=top)
        return exchange is None or bool(exchange.down.max() > exchange.up.min())

    return _fewest(enough)


def samples_needed_for_gap(
    gap: float, std: float, tokens: int, *, eta: float, bound: Bound = "bernstein"
) -> int | None:
    """How many maps tell two neighbouring entries apart that differ by ``gap``.

    ``std`` is the standard deviation of one entry from map to map; None where gap is 0.
    """
    return _fewest(lambda n: 2 * float(half_width(std**2, n, tokens, eta, bound)) < gap)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest n from 2 on with enough(n), which stays true once it is."""
    high = 2
    while not enough(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def moments_of(maps: Sequence[np.ndarray] | np.ndarray) -> Moments:
    """Moments of (n, T) maps that are all in memory."""
    maps = np.asarray(maps, dtype=np.float64)
    return Moments(maps.mean(0), maps.var(0, ddof=1), len(maps))
