"""Exact statements about votes: binomial tails, the Clopper-Pearson bound, the two-sided test."""

import math
from functools import lru_cache


def tail(hits: int, n: int, p: float) -> float:
    """P(X >= hits) for X ~ Binomial(n, p): relative error below 1e-9 for n up to 100,000."""
    _check(hits, n)
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p:g}; a probability lies between 0 and 1")
    if hits == 0 or p == 1:
        return 1.0
    if p == 0:
        return 0.0
    if hits <= n * p:  # the other tail is the one whose terms fall
        return 1 - tail(n - hits + 1, n, 1 - p)
    return min(math.exp(_log_tail(hits, n, p)), 1.0)


@lru_cache(maxsize=4096)
def lower_bound(hits: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: p is at least this, with confidence 1 - alpha.

    The p at which ``hits`` or more of ``n`` have probability alpha, which is the alpha-quantile of
    Beta(hits, n - hits + 1) (Clopper and Pearson, Biometrika 1934); 0 without hits.
    """
    _check(hits, n)
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha:g}; an error probability lies between 0 and 0.5")
    if hits == 0:
        return 0.0
    goal, low, high = math.log(alpha), 0.0, hits / n
    # The tail grows with p, and passes alpha below hits / n, the median's neighbour.
    while low < (middle := (low + high) / 2) < high:
        if _log_tail(hits, n, middle) < goal:
            low = middle
        else:
            high = middle
    return low


@lru_cache(maxsize=4096)
def needed_hits(n: int, alpha: float, p: float = 0.5) -> int:
    """Fewest hits of n whose `lower_bound` reaches p; n + 1 if even n hits do not."""
    low, high = 0, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        if lower_bound(middle, n, alpha) >= p:
            high = middle
        else:
            low = middle
    return high


def two_sided_p(first: int, second: int) -> float:
    """p-value of the exact test that two classes with these votes are equally likely."""
    more = max(first, second)
    return min(1.0, 2 * tail(more, first + second, 0.5))


def _log_tail(hits: int, n: int, p: float) -> float:
    """Log of P(X >= hits) where hits > n p: the first term, times a series of falling terms."""
    odds = p / (1 - p)
    term, total = 1.0, 1.0
    for k in range(hits, n):
        term *= (n - k) / (k + 1) * odds
        total += term
        if term < 1e-17 * total:
            break
    log_choose = math.lgamma(n + 1) - math.lgamma(hits + 1) - math.lgamma(n - hits + 1)
    log_first = log_choose + hits * math.log(p) + (n - hits) * math.log1p(-p)
    return log_first + math.log(total)


def _check(hits: int, n: int) -> None:
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n} draws: it must be 0 <= hits <= n, and n at least 1")
