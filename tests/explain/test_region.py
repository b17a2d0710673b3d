"""The faithful region: two conditions, the nearer of which ends it, and what the result says."""

import json
import math

import numpy as np
import pytest

from diffit.errors import UsageError
from diffit.explain.bounds import Moments, samples_needed
from diffit.explain.certify import certify_votes
from diffit.explain.overlap import renyi
from diffit.explain.region import (
    SMOOTHED_CLASS,
    certify_estimate,
    certify_map,
    faithful_region,
    prediction_divergence,
    prediction_radius,
)
from diffit.explain.results import as_json

MAP = np.array([0.3, 0.25, 0.2, 0.1, 0.08, 0.05, 0.02])
FOUND = Moments(MAP, np.full(7, 1e-3), 5000)


def exact(**changes):
    return certify_map(MAP, 3, 1.0, **{"sigma": 0.5, "dimensions": 64, **changes})


def test_the_prediction_holds_up_to_the_radius_of_its_divergence():
    """Two shifted Gaussians have exactly this divergence; no channel of them has a larger one."""
    sigma, alpha, shift = 0.5, 2.0, 0.3
    x = np.linspace(-8, 8, 40_001)
    p, q = (np.exp(-((x - m) ** 2) / (2 * sigma**2)) for m in (0, shift))
    gamma = renyi(p / p.sum(), q / q.sum(), alpha)
    assert prediction_radius(sigma, gamma=gamma, alpha=alpha) == pytest.approx(shift, rel=1e-6)
    assert prediction_divergence(shift, sigma, alpha=alpha) == pytest.approx(gamma, rel=1e-6)


@pytest.mark.parametrize(("gamma", "binds"), [(1e-4, "prediction"), (10.0, "explanation")])
def test_the_nearer_condition_ends_the_region(gamma, binds):
    found = faithful_region(exact(), gamma=gamma, alpha=2.0)
    assert found.binds == binds
    assert found.radius_l2 == min(found.prediction_radius_l2, found.map.radius_l2)
    assert found.radius_linf == pytest.approx(found.radius_l2 / 8)


def test_only_the_threshold_form_of_a_known_or_bounded_map_is_a_certificate():
    assert exact().certified
    assert not exact(form="pooled").certified
    bounded = certify_estimate(FOUND, 3, 1.0, sigma=0.5, dimensions=64)
    assert bounded.certified
    point = certify_estimate(FOUND, 3, 1.0, sigma=0.5, dimensions=64, eta=None)
    assert (point.of, point.certified) == ("point", False)
    assert 0 < bounded.radius_l2 < point.radius_l2 == pytest.approx(exact().radius_l2)


def test_a_certificate_says_how_it_came_about():
    found = certify_estimate(FOUND, 3, 1.0, sigma=0.5, dimensions=64, eta=0.01, bound="hoeffding",
                             of="reported")  # fmt: skip
    stated = as_json(faithful_region(found, gamma=0.1))
    assert json.loads(json.dumps(stated)) == stated
    stated = stated["map"]
    assert stated["form"] == "threshold"
    assert stated["direction"] in ("forward", "backward")
    assert stated["order"] > 1
    assert (stated["m"], stated["eta"], stated["bound"]) == (5000, 0.01, "hoeffding")
    assert (stated["k"], stated["leave"], stated["top"]) == (3, 1, [0, 1, 2])
    assert stated["sigma"] == {"01": 0.25, "pm1": 0.5}
    assert stated["certified"] is True


def label(hits, alpha=0.001):
    return certify_votes(1, hits, 1000, sigma=0.5, alpha=alpha, dimensions=64)


def test_a_map_of_the_smoothed_prediction_holds_no_further_than_the_label():
    bounded = certify_estimate(FOUND, 3, 1.0, sigma=0.5, dimensions=64, eta=0.05)
    sure = faithful_region(bounded, gamma=10.0, label=label(1000))
    assert (sure.binds, sure.radius_l2) == ("explanation", bounded.radius_l2)
    assert sure.error == pytest.approx(0.051)
    assert sure.map.explained == SMOOTHED_CLASS
    near = faithful_region(bounded, gamma=10.0, label=label(560))
    assert (near.binds, near.radius_l2) == ("label", label(560).radius_l2)
    assert 0 < near.radius_l2 < bounded.radius_l2
    assert faithful_region(bounded, gamma=10.0, label=label(400)).radius_l2 == 0
    assert json.dumps(as_json(near))


def test_only_a_certificate_has_an_error_probability():
    point = certify_estimate(FOUND, 3, 1.0, sigma=0.5, dimensions=64, eta=None)
    assert faithful_region(point, gamma=1.0, label=label(900)).error is None
    assert not faithful_region(point, gamma=1.0).certified
    assert faithful_region(exact(), gamma=1.0).error is None
    assert faithful_region(exact(), gamma=1.0, label=label(900)).error == 0.001


def test_a_certificate_says_how_many_maps_a_radius_needs():
    few = FOUND._replace(n=30)
    found = certify_estimate(few, 3, 1.0, sigma=0.5, dimensions=64)
    assert found.radius_l2 == 0
    assert found.needed == samples_needed(few, 3, 1.0, eta=0.05) > 30
    enough = few._replace(n=found.needed)
    assert certify_estimate(enough, 3, 1.0, sigma=0.5, dimensions=64).radius_l2 > 0


def test_a_single_map_is_refused_where_confidence_is_wanted():
    with pytest.raises(UsageError, match="average at least 2"):
        certify_estimate(FOUND._replace(n=1), 3, 1.0, sigma=0.5, dimensions=64)


def test_a_condition_that_nothing_can_break_is_called_infinite():
    found = certify_map([0.4, 0.3, 0.2, 0.1], 3, 0.3, sigma=0.5, dimensions=4)
    assert found.radius_l2 == math.inf
    assert as_json(found)["radius_l2"] == {"01": "infinite", "pm1": "infinite"}
    assert faithful_region(found, gamma=0.1).binds == "prediction"


@pytest.mark.parametrize(("gamma", "alpha"), [(-1, 2), (0.1, 1), (0.1, 0.5)])
def test_impossible_conditions_are_refused(gamma, alpha):
    with pytest.raises(ValueError, match="they must be"):
        faithful_region(exact(), gamma=gamma, alpha=alpha)
    with pytest.raises(ValueError, match="they must be"):
        prediction_divergence(-1.0, 0.5, alpha=2.0)
