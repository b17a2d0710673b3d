"""Exact binomial statements: against scipy, recorded values, and their own definition."""

import json
from pathlib import Path

import pytest
from scipy import stats

from diffit.explain.binomial import lower_bound, needed_hits, tail, two_sided_p

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "smoothing.json").read_text())


def test_the_recorded_clopper_pearson_bounds_are_met():
    for case in RECORDED["lower_confidence_bound"]:
        bound = lower_bound(case["nA"], case["n"], case["alpha"])
        assert bound == pytest.approx(case["p_lower"], abs=1e-10)


def test_the_recorded_two_sided_p_values_are_met():
    for case in RECORDED["predict"]:
        second, first = sorted(case["counts"])[-2:]
        assert two_sided_p(first, second) == pytest.approx(case["p_value"], rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "n", "p"), [(3, 7, 0.2), (0, 5, 0.3), (5, 5, 0.3), (49_000, 100_000, 0.5),
                         (50_500, 100_000, 0.5), (90_100, 100_000, 0.9), (2, 9, 0.0), (2, 9, 1.0)]
)  # fmt: skip
def test_tails_are_those_of_scipy(hits, n, p):
    assert tail(hits, n, p) == pytest.approx(stats.binom.sf(hits - 1, n, p), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-12])
def test_the_bound_is_the_quantile_of_a_beta_law(alpha):
    for hits, n in [(1, 1), (1, 10), (7, 10), (10, 10), (999_995, 1_000_000)]:
        expected = stats.beta.ppf(alpha, hits, n - hits + 1)
        assert lower_bound(hits, n, alpha) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.77, 0.99])
def test_the_bound_is_above_the_truth_with_probability_at_most_alpha(p):
    """Exactly, by summing over all counts that might be seen."""
    n, alpha = 60, 0.05
    above = sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if lower_bound(k, n, alpha) > p)
    assert above <= alpha
    # Not by being idle: at one hit less than the first wrong count it would be too often.
    first = min((k for k in range(n + 1) if lower_bound(k, n, alpha) > p), default=n + 1)
    assert stats.binom.sf(first - 2, n, p) > alpha


@pytest.mark.parametrize("p", [0.5, 0.8])
def test_needed_hits_are_the_fewest_that_reach_p(p):
    for n in (5, 10, 100, 1000):
        hits = needed_hits(n, 0.001, p)
        assert hits == n + 1 or lower_bound(hits, n, 0.001) >= p
        assert lower_bound(hits - 1, n, 0.001) < p


def test_a_two_sided_test_of_equal_counts_says_nothing():
    assert two_sided_p(5, 5) == 1
    assert two_sided_p(0, 1) == 1
    assert two_sided_p(10, 0) == pytest.approx(2 / 2**10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lower_bound(5, 4, 0.1), "5 hits of 4 draws"),
        (lambda: lower_bound(0, 0, 0.1), "n at least 1"),
        (lambda: lower_bound(2, 4, 0.0), "alpha is 0"),
        (lambda: lower_bound(2, 4, 0.5), "alpha is 0.5"),
        (lambda: tail(2, 4, 1.5), "p is 1.5"),
    ],
)
def test_what_is_no_count_or_probability_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
