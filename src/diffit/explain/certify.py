"""Certified labels by randomised smoothing (Cohen et al., arXiv:1902.02918): from votes to radii.

The smoothed classifier g(x) is the class that f(x + noise) most likely takes. If class A is taken
with probability at least p > 1/2, then g is A within sigma * Phi^-1(p) of x, in l2 (Theorem 1);
whatever f does with the noisy image, a denoiser included, is a part of f (arXiv:2206.10550).
All functions here are plain arithmetic on counts; `diffit.explain.smoothed` draws them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from diffit.explain.binomial import lower_bound, needed_hits, two_sided_p

ABSTAIN = -1
"""The label of an abstention in tables, as the smoothing literature writes it."""


@dataclass(frozen=True)
class LabelCertificate:
    """What is known of the smoothed label of one image, with confidence 1 - alpha.

    Lengths are those of pixels in [-1, 1]; `diffit.explain.results.as_json` states both units.
    """

    label: int | None
    """The class, None for an abstention."""
    radius_l2: float
    """The smoothed label is the same within this distance; 0 for an abstention."""
    radius_linf: float
    """The same for the largest change of a pixel value: radius_l2 / sqrt(dimensions)."""
    p_lower: float
    """Lower confidence bound of the probability of the class that was selected."""
    selected: int
    """The most frequent class among the selection samples."""
    hits: int
    """Votes for it among the estimation samples that were drawn."""
    n: int
    """Estimation samples; votes that were never drawn count as misses."""
    drawn: int
    """How many of them were drawn: fewer where no further vote could change the decision."""
    alpha: float
    """Error probability of the certificate."""
    sigma: float
    """Standard deviation of the noise."""
    dimensions: int
    """Values of the image in which the distance is measured."""
    seed: int | None = None
    """Of all noise; None where the counts came from elsewhere."""
    number: int | None = None
    """Which image it was, for its noise."""


@dataclass(frozen=True)
class Prediction:
    """The smoothed label without a radius (Cohen et al., PREDICT).

    With probability 1 - alpha it is the smoothed classifier's own, or an abstention.
    """

    label: int | None
    """The class, None for an abstention."""
    p_value: float
    """Of the two-sided test that the two leading classes are equally likely."""
    counts: tuple[int, ...]
    """Votes of each class among the samples that were drawn."""
    n: int
    """Samples; those that were never drawn are counted for the runner-up."""
    alpha: float
    """Largest p-value that is no abstention."""
    seed: int | None = None
    """Of all noise; None where the counts came from elsewhere."""
    number: int | None = None
    """Which image it was, for its noise."""


def radius(p_lower: float, sigma: float) -> float:
    """The l2 radius of a class whose probability is at least p_lower, in the units of sigma."""
    if p_lower <= 0.5:
        return 0.0
    return sigma * NormalDist().inv_cdf(p_lower) if p_lower < 1 else math.inf


def leader(counts: Sequence[int]) -> int:
    """The most frequent class; of equally frequent ones the first."""
    return max(range(len(counts)), key=lambda k: (counts[k], -k))


def certify_votes(
    selected: int,
    hits: int,
    n: int,
    *,
    sigma: float,
    alpha: float,
    dimensions: int,
    drawn: int | None = None,
) -> LabelCertificate:
    """The certificate that ``hits`` of ``n`` fresh votes for the selected class give.

    Args:
        selected: the guess, from votes that are not among the n.
        hits: votes for it.
        n: all votes, fixed before the first was drawn.
        sigma: standard deviation of the noise, for pixels in [-1, 1].
        alpha: error probability.
        dimensions: C * H * W of the image that the noise was added to.
        drawn: how many of the n were drawn; the others count as misses, so that a count which
            was stopped early states no more than the full one would have.
    """
    p_lower = lower_bound(hits, n, alpha)
    certain = p_lower >= 0.5
    l2 = radius(p_lower, sigma)
    return LabelCertificate(
        label=selected if certain else None,
        radius_l2=l2,
        radius_linf=l2 / math.sqrt(dimensions),
        p_lower=p_lower,
        selected=selected,
        hits=hits,
        n=n,
        drawn=n if drawn is None else drawn,
        alpha=alpha,
        sigma=sigma,
        dimensions=dimensions,
    )


def certification_is_decided(
    hits: int, drawn: int, n: int, *, sigma: float, alpha: float, enough: float | None = None
) -> bool:
    """Whether no outcome of the votes that are left can change the decision.

    Without ``enough`` the only decision is to abstain. With it, a radius that suffices, the count
    also ends where so many hits are there that the full one must reach that radius.
    """
    if hits + n - drawn < needed_hits(n, alpha):
        return True
    if enough is None:
        return False
    return hits >= needed_hits(n, alpha, NormalDist().cdf(enough / sigma))


def predict_votes(counts: Sequence[int], *, alpha: float, n: int | None = None) -> Prediction:
    """The label that the votes speak for, or an abstention.

    Args:
        counts: votes of each class.
        alpha: largest p-value that is no abstention.
        n: all votes, fixed before the first was drawn; those that were not drawn count for the
            runner-up.
    """
    first = leader(counts)
    drawn, most = sum(counts), counts[first]
    n = drawn if n is None else n
    second = sum(sorted(counts)[-2:-1])
    rival = second + n - drawn
    p_value = two_sided_p(most, rival) if most > rival else 1.0
    label = first if p_value <= alpha else None
    return Prediction(label, p_value, tuple(counts), n, alpha)


def prediction_is_decided(counts: Sequence[int], n: int, *, alpha: float) -> bool:
    """Whether no outcome of the votes that are left can change what `predict_votes` says."""
    if predict_votes(counts, alpha=alpha, n=n).label is not None:
        return True
    first = leader(counts)
    best = list(counts)
    best[first] += n - sum(counts)
    return predict_votes(best, alpha=alpha).label is None
