"""How far an image may move before its explanation loses the top-k entries it names.

A smoothed map is the mean of maps that are each non-negative with sum 1: the law of a token drawn
from a noisy image. So the Renyi divergence between the maps of x and x' is at most that of the
noisy images, order * |x - x'|^2 / (2 sigma^2) (post-processing, in either direction). The overlap
of the top k can fall below beta only where some entries of the top k pass below others, and that
costs a divergence that is computed here (faithful ViTs, arXiv:2311.17983; arXiv:2107.01561).

The form usually printed lets all 2 k0 entries meet at one value. That is possible but not the
cheapest way for k0 >= 2, so its radius is too large, and no certificate. The cheapest way, form
"threshold", moves only the entries on the wrong side of a threshold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Form = Literal["threshold", "pooled"]
"""threshold: the exact minimum. pooled: the printed form, for comparison; no valid certificate."""

Direction = Literal["forward", "backward"]
"""forward: D(map of x || map of x'). backward: D(map of x' || map of x)."""

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")

ORDERS = (1.01, 1.1, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""Orders of the divergence among which the best is taken."""

FLOOR = 1e-12
"""An entry of 0 stands for this: it would make the backward divergence infinite."""


class Best(NamedTuple):
    """The order and direction that certify the largest radius."""

    radius: float
    order: float
    direction: Direction


@dataclass(frozen=True)
class Leaving:
    """The entries whose exchange lowers the overlap below beta most cheaply.

    Attributes:
        down: (k0,) those of the top k that must go down.
        up: (k0,) those of the rest that must go up.
    """

    down: np.ndarray
    up: np.ndarray


def top_k(weights: Sequence[float] | np.ndarray, k: int) -> np.ndarray:
    """(k,) places of the k largest entries, largest first; of equal ones the lower place."""
    weights = np.asarray(weights, dtype=np.float64)
    _check_k(k, weights.size)
    return np.argsort(-weights, kind="stable")[:k]


def overlap(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, k: int) -> float:
    """Share of the k largest entries of one map that are among those of the other, in [0, 1]."""
    return len(set(top_k(a, k).tolist()) & set(top_k(b, k).tolist())) / k


def renyi(p: Sequence[float] | np.ndarray, q: Sequence[float] | np.ndarray, order: float) -> float:
    """Renyi divergence of an order above 0 and not 1: ln(sum p^order q^(1 - order)) / (order - 1).

    Infinite where q is 0 and p is not, for orders above 1.
    """
    if order <= 0 or order == 1:
        raise ValueError(f"the order of the divergence is {order:g}; it must be above 0 and not 1")
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    seen = p > 0
    with np.errstate(divide="ignore"):
        logs = order * np.log(p[seen]) + (1 - order) * np.log(q[seen])
    return _log_sum(logs) / (order - 1)


def must_leave(k: int, beta: float) -> int:
    """k0: how many of the top k have to leave until the overlap is below beta."""
    if not 0 < beta <= 1:
        raise ValueError(f"beta is {beta:g}; the overlap to keep lies above 0, and 1 is all of it")
    # 10 * (1 - 0.8) is a little below 2 in floating point, and 3 must leave.
    return math.floor((1 - beta) * k + 1e-9) + 1


def leaving(weights: Sequence[float] | np.ndarray, k: int, beta: float) -> Leaving | None:
    """The cheapest exchange of a map with sum 1, None if none lowers the overlap below beta."""
    weights = np.asarray(weights, dtype=np.float64)
    _check_k(k, weights.size)
    if not weights.min() >= 0 or not abs(weights.sum() - 1) < 1e-6:
        raise ValueError(
            f"the map's smallest entry is {weights.min():g} and its sum {weights.sum():g}; only "
            "maps without negative entries and with sum 1 can be certified"
        )
    k0 = must_leave(k, beta)
    if k0 > min(k, weights.size - k):
        return None
    falling = np.sort(weights)[::-1]
    return Leaving(falling[k - k0 : k], falling[k : k + k0])


def least_divergence(
    exchange: Leaving, order: float, direction: Direction, *, form: Form = "threshold"
) -> float:
    """The smallest divergence from the map to one in which the exchange has happened.

    Args:
        exchange: what has to pass; the other entries only share what is left of the sum 1.
        order: of the Renyi divergence, above 1.
        direction: which of the two maps comes first.
        form: "threshold" is exact; "pooled" is at least as large.
    """
    if order <= 1:
        raise ValueError(f"the order of the divergence is {order:g}; it must be above 1")
    down, up = np.maximum(exchange.down, FLOOR), np.maximum(exchange.up, FLOOR)
    if down.max() <= up.min():
        return 0.0
    power = order if direction == "forward" else 1 - order
    moved = np.concatenate([down, up])
    if form == "threshold":
        moved = _wrong_side(down, up, power)
    excess = moved.size * _power_mean(moved, power) - float(moved.sum())
    if direction == "forward":
        return order / (order - 1) * math.log1p(excess)
    # Bounds that no map can have all at once may leave nothing to take the logarithm of.
    return max(-math.log1p(excess), 0.0) if excess > -1 else 0.0


def best_radius(
    exchange: Leaving | None,
    sigma: float,
    *,
    orders: Sequence[float] = ORDERS,
    directions: Sequence[Direction] = DIRECTIONS,
    form: Form = "threshold",
) -> Best:
    """The largest l2 radius, in the units of sigma, that any order and direction certify.

    Infinite if there is no exchange to fear.
    """
    if exchange is None:
        return Best(math.inf, orders[0], directions[0])
    found = [
        Best(sigma * math.sqrt(2 * least / order), order, direction)
        for order in orders
        for direction in directions
        for least in [least_divergence(exchange, order, direction, form=form)]
    ]
    return max(found, key=lambda best: best.radius)


def _wrong_side(down: np.ndarray, up: np.ndarray, power: float) -> np.ndarray:
    """The entries that have to move: P with M(P) = t, P = {down above t} and {up below t}."""
    low, high = float(min(down.min(), up.min())), float(max(down.max(), up.max()))
    while low < (middle := (low + high) / 2) < high:
        # What lies above the threshold pulls it up, what lies below pulls it down.
        moved = np.concatenate([down[down > middle], up[up < middle]])
        if _power_mean(moved, power) > middle:
            low = middle
        else:
            high = middle
    return np.concatenate([down[down > low], up[up < high]])


def _power_mean(values: np.ndarray, power: float) -> float:
    """(mean of values^power)^(1 / power), computed in logarithms."""
    return math.exp((_log_sum(power * np.log(values)) - math.log(values.size)) / power)


def _log_sum(logs: np.ndarray) -> float:
    top = float(logs.max())
    return top if math.isinf(top) else top + math.log(float(np.exp(logs - top).sum()))


def _check_k(k: int, size: int) -> None:
    if not 1 <= k <= size:
        raise ValueError(f"k is {k}; of a map of {size} entries it must be from 1 to {size}")
