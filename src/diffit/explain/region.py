"""The faithful region: how far an image may move while explanation and prediction both hold.

A smoothed attention is (R, D, gamma, beta, k)-faithful at x if for every x' within R the overlap of
the top k is at least beta, and the Renyi divergence of order alpha between the class probabilities
is at most gamma (arXiv:2311.17983, definitions and Algorithm 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from diffit.errors import UsageError
from diffit.explain.bounds import Bound, Moments, Top, box, samples_needed, worst_exchange
from diffit.explain.certify import LabelCertificate
from diffit.explain.overlap import (
    DIRECTIONS,
    ORDERS,
    Direction,
    Form,
    best_radius,
    leaving,
    must_leave,
    top_k,
)

CLASS_AS_CONSTANT = (
    "the map explains one class, the same for every noisy image and for every x' within the radius"
)
CLASS_OF_EACH_SAMPLE = "each noisy image is explained for the class it is predicted as"
NO_CLASS = "the map depends on no class"
SMOOTHED_CLASS = (
    "the map explains the smoothed prediction, which is one class for every x' within the radius "
    "of the label certificate, the end of what is known; the error probabilities add"
)


@dataclass(frozen=True)
class MapCertificate:
    """How far the image may move without losing the top k of its map. Lengths as in [-1, 1]."""

    radius_l2: float
    """The overlap is at least beta for every image within this distance."""
    radius_linf: float
    """The same for the largest change of a pixel value: radius_l2 / sqrt(dimensions)."""
    top: tuple[int, ...]
    """The k largest entries of the map, largest first, as places in row-major order."""
    k: int
    beta: float
    """Overlap that is kept, as a share of k."""
    leave: int
    """k0: how many of the top k have to leave until the overlap is below beta."""
    form: Form
    """threshold is a certificate; pooled is the printed form, for comparison alone."""
    order: float
    """Of the Renyi divergence that gives this radius, the best of those tried."""
    direction: Direction
    """Which of the two maps comes first in it."""
    of: Literal["smoothed", "reported", "point"]
    """Whose top k: that of the smoothed map, the one reported here, or that of the estimate as if
    it were the smoothed map, which no confidence goes with."""
    eta: float | None
    """Error probability; None for a point estimate or an exact map."""
    bound: Bound | None
    """Inequality behind the confidence box; None without one."""
    m: int | None
    """Maps that were averaged; None for an exact map."""
    needed: int | None
    """Maps that a radius above 0 needs, if mean and variance stay; None: no number would do, or
    the map is exact."""
    sigma: float
    """Standard deviation of the noise."""
    dimensions: int
    """Values of the image in which the distance is measured."""
    explained: str
    """Which class the map explains, and what follows for the certificate."""
    seed: int | None = None
    """Of all noise; None where the map came from elsewhere."""
    number: int | None = None
    """Which image it was, for its noise."""

    @property
    def certified(self) -> bool:
        """Whether the radius holds: with confidence 1 - eta, or surely for an exact map."""
        return self.form == "threshold" and self.of != "point"


@dataclass(frozen=True)
class FaithfulRegion:
    """Where explanation and prediction hold together. Lengths as in [-1, 1]."""

    radius_l2: float
    """R: all conditions hold for every image within this distance."""
    radius_linf: float
    """The same for the largest change of a pixel value."""
    binds: Literal["explanation", "prediction", "label"]
    """Which condition ends the region."""
    error: float | None
    """Probability that any of the certificates is wrong; None for an exact map or a point
    estimate."""
    gamma: float
    """Largest divergence between the class probabilities."""
    alpha: float
    """Order of that divergence."""
    prediction_radius_l2: float
    """Where the second condition alone would end."""
    map: MapCertificate
    """The first condition."""
    label: LabelCertificate | None = None
    """Where the map explains the smoothed prediction: within its radius that is one class."""

    @property
    def certified(self) -> bool:
        """Whether the region holds, with confidence 1 - error."""
        return self.map.certified


def certify_map(
    weights: Sequence[float] | np.ndarray,
    k: int,
    beta: float,
    *,
    sigma: float,
    dimensions: int,
    orders: Sequence[float] = ORDERS,
    directions: Sequence[Direction] = DIRECTIONS,
    form: Form = "threshold",
    explained: str = CLASS_AS_CONSTANT,
) -> MapCertificate:
    """The certificate of a smoothed map that is known exactly.

    Args:
        weights: (T,) entries, none negative, with sum 1.
        k, beta: keep a share beta of the k largest entries.
        sigma: standard deviation of the noise, for pixels in [-1, 1].
        dimensions: C * H * W of the image.
        orders, directions: of the divergences among which the best is taken.
        form: "threshold", or "pooled" for comparison.
        explained: which class the map explains.
    """
    best = best_radius(
        leaving(weights, k, beta), sigma, orders=orders, directions=directions, form=form
    )
    return MapCertificate(
        radius_l2=best.radius,
        radius_linf=best.radius / math.sqrt(dimensions),
        top=tuple(top_k(weights, k).tolist()),
        k=k,
        beta=beta,
        leave=must_leave(k, beta),
        form=form,
        order=best.order,
        direction=best.direction,
        of="smoothed",
        eta=None,
        bound=None,
        m=None,
        needed=None,
        sigma=sigma,
        dimensions=dimensions,
        explained=explained,
    )


def certify_estimate(
    moments: Moments,
    k: int,
    beta: float,
    *,
    sigma: float,
    dimensions: int,
    eta: float | None = 0.05,
    of: Top = "smoothed",
    bound: Bound = "bernstein",
    orders: Sequence[float] = ORDERS,
    directions: Sequence[Direction] = DIRECTIONS,
    form: Form = "threshold",
    explained: str = CLASS_AS_CONSTANT,
) -> MapCertificate:
    """The certificate of a smoothed map that was estimated from ``moments.n`` noisy images.

    Args:
        moments: of the maps, each without negative entries and with sum 1.
        eta: error probability; None takes the estimate for the smoothed map, and the result says
            that it is a point estimate.
        of: whose top k the radius is about. With "smoothed" it is 0 unless the box tells all of
            the top k from the rest; with "reported" near ties inside the tolerance of beta do not
            matter.
        bound: inequality behind the box.

    The other arguments are those of `certify_map`.
    """
    mean = moments.mean / moments.mean.sum()
    point = certify_map(
        mean, k, beta, sigma=sigma, dimensions=dimensions, orders=orders, directions=directions,
        form=form, explained=explained,
    )  # fmt: skip
    if eta is None:
        return replace(point, of="point", m=moments.n)
    if moments.n < 2:
        raise UsageError("one map says nothing of how maps vary; average at least 2")
    exchange = worst_exchange(moments, k, beta, box(moments, eta, bound), top=of)
    best = best_radius(exchange, sigma, orders=orders, directions=directions, form=form)
    return replace(
        point,
        radius_l2=best.radius,
        radius_linf=best.radius / math.sqrt(dimensions),
        order=best.order,
        direction=best.direction,
        of=of,
        eta=eta,
        bound=bound,
        m=moments.n,
        needed=samples_needed(moments, k, beta, eta=eta, bound=bound, top=of),
    )


def prediction_radius(sigma: float, *, gamma: float, alpha: float) -> float:
    """Within this l2 distance the class probabilities differ by at most gamma: exact.

    The divergence of order alpha between the smoothed probabilities is at most
    alpha * R^2 / (2 sigma^2), whatever the classifier.
    """
    if gamma < 0 or alpha <= 1:
        raise ValueError(f"gamma is {gamma:g} and alpha {alpha:g}; they must be >= 0 and > 1")
    return sigma * math.sqrt(2 * gamma / alpha)


def prediction_divergence(distance: float, sigma: float, *, alpha: float) -> float:
    """The inverse of `prediction_radius`: the largest divergence at an l2 distance."""
    if distance < 0 or alpha <= 1:
        raise ValueError(f"distance is {distance:g}, alpha {alpha:g}; they must be >= 0 and > 1")
    return alpha * distance**2 / (2 * sigma**2)


def faithful_region(
    certificate: MapCertificate,
    *,
    gamma: float,
    alpha: float = 2.0,
    label: LabelCertificate | None = None,
) -> FaithfulRegion:
    """The region in which all conditions hold.

    Args:
        certificate: of the map.
        gamma, alpha: the class probabilities differ by at most gamma in the Renyi divergence of
            this order.
        label: of the class that the map explains, if that is to be the smoothed prediction at
            every image of the region; an abstention leaves no region.
    """
    ends: dict[Literal["explanation", "prediction", "label"], float] = {
        "explanation": certificate.radius_l2,
        "prediction": prediction_radius(certificate.sigma, gamma=gamma, alpha=alpha),
    }
    errors = [certificate.eta]
    if label is not None:
        ends["label"] = label.radius_l2
        errors.append(label.alpha)
        certificate = replace(certificate, explained=SMOOTHED_CLASS)
    known = [error for error in errors if error is not None]
    binds = min(ends, key=lambda name: ends[name])
    return FaithfulRegion(
        radius_l2=ends[binds],
        radius_linf=ends[binds] / math.sqrt(certificate.dimensions),
        binds=binds,
        error=sum(known) if known and certificate.certified else None,
        gamma=gamma,
        alpha=alpha,
        prediction_radius_l2=ends["prediction"],
        map=certificate,
        label=label,
    )
