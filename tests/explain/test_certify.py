"""From votes to labels and radii: recorded values, closed forms, and what an early end may say."""

import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from diffit.explain.certify import (
    certification_is_decided,
    certify_votes,
    leader,
    predict_votes,
    prediction_is_decided,
    radius,
)
from diffit.explain.results import as_json

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "smoothing.json").read_text())


def certificate(hits, n, *, alpha=0.001, sigma=0.5, dimensions=64, **more):
    return certify_votes(3, hits, n, sigma=sigma, alpha=alpha, dimensions=dimensions, **more)


def test_the_recorded_certificates_are_met():
    for case in RECORDED["certify"]:
        selection = [case["n0_counts"].get(str(k), 0) for k in range(10)]
        found = certify_votes(
            leader(selection), case["nA"], case["n"],
            sigma=case["sigma"], alpha=case["alpha"], dimensions=64,
        )  # fmt: skip
        assert (-1 if found.label is None else found.label) == case["prediction"]
        assert found.radius_l2 == pytest.approx(case["radius_l2"], abs=1e-9)


def test_the_recorded_predictions_are_met():
    for case in RECORDED["predict"]:
        found = predict_votes(case["counts"], alpha=case["alpha"])
        assert (found.label is None) == case["abstain"]
        assert found.p_value == pytest.approx(case["p_value"], rel=1e-9)


def test_the_radius_of_a_linear_classifier_is_the_distance_to_its_boundary():
    """sign(w x + b) is smoothed to itself, and errs with probability Phi(-distance / sigma)."""
    for distance, sigma in [(0.1, 0.25), (0.4, 0.25), (1.0, 1.0)]:
        p = NormalDist().cdf(distance / sigma)
        assert radius(p, sigma) == pytest.approx(distance, rel=1e-12)


def test_the_radius_grows_with_the_votes_and_with_the_noise():
    radii = [certificate(hits, 1000).radius_l2 for hits in range(500, 1001)]
    assert radii == sorted(radii)
    assert certificate(900, 1000, sigma=1.0).radius_l2 == 2 * certificate(900, 1000).radius_l2


def test_the_largest_change_of_a_pixel_is_the_distance_over_the_root_of_their_number():
    found = certificate(900, 1000, dimensions=3 * 32 * 32)
    assert found.radius_linf == pytest.approx(found.radius_l2 / math.sqrt(3072))


def test_too_few_votes_are_an_abstention_without_radius():
    found = certificate(520, 1000)
    assert found.label is None
    assert (found.radius_l2, found.radius_linf) == (0, 0)
    assert as_json(found)["label"] is None


def test_no_number_of_votes_certifies_all_of_space():
    assert certificate(10**6, 10**6).radius_l2 < 0.5 * 5


def test_of_equally_frequent_classes_the_first_leads():
    assert leader([2, 7, 7, 1]) == 1


def sequences(classes, n, count):
    """Votes of classifiers that are sure, unsure, and torn between two classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        weights = rng.dirichlet([0.3 + i % 4] * classes)
        yield rng.choice(classes, size=n, p=weights)


def test_a_prediction_that_ends_early_is_that_of_all_votes():
    n, early = 60, 0
    for sequence in sequences(3, n, 200):
        whole = predict_votes(np.bincount(sequence, minlength=3).tolist(), alpha=0.05)
        for drawn in range(1, n + 1):
            counts = np.bincount(sequence[:drawn], minlength=3).tolist()
            if prediction_is_decided(counts, n, alpha=0.05):
                found = predict_votes(counts, alpha=0.05, n=n)
                assert found.label == whole.label
                assert found.p_value >= whole.p_value
                early += drawn < n
                break
        else:
            pytest.fail("all votes are counted and nothing is decided")
    assert early > 100


@pytest.mark.parametrize("enough", [None, 0.2])
def test_a_certificate_that_ends_early_decides_as_all_votes_do_and_states_no_more(enough):
    n, sigma, alpha, early = 80, 0.5, 0.01, 0
    for sequence in sequences(2, n, 200):
        whole = certificate(int((sequence == 0).sum()), n, alpha=alpha, sigma=sigma)
        for drawn in range(1, n + 1):
            hits = int((sequence[:drawn] == 0).sum())
            if drawn == n or certification_is_decided(
                hits, drawn, n, sigma=sigma, alpha=alpha, enough=enough
            ):
                break
        found = certificate(hits, n, alpha=alpha, sigma=sigma, drawn=drawn)
        assert found.label == whole.label
        assert found.radius_l2 <= whole.radius_l2
        if enough is not None:
            assert (found.radius_l2 >= enough) == (whole.radius_l2 >= enough)
        early += drawn < n
    assert early > 60


def test_lengths_are_stated_in_both_units():
    stated = as_json(certificate(900, 1000, sigma=0.5))
    assert stated["sigma"] == {"01": 0.25, "pm1": 0.5}
    assert stated["radius_l2"]["pm1"] == 2 * stated["radius_l2"]["01"]
    assert json.loads(json.dumps(stated)) == stated
