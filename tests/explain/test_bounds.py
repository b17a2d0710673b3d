"""Confidence boxes: their formulas, how often they hold, and what a certificate makes of them."""

import math

import numpy as np
import pytest

from diffit.explain.bounds import (
    Moments,
    box,
    half_width,
    moments_of,
    samples_needed,
    samples_needed_for_gap,
    worst_exchange,
)
from diffit.explain.overlap import best_radius, leaving

TOKENS = 16


def law(seed=0):
    """Mean map of 16 tokens, four of them well above the rest, and how to draw maps."""
    rng = np.random.default_rng(seed)
    strength = np.concatenate([[24.0, 20.0, 17.0, 15.0], rng.uniform(0.5, 3.0, 12)])
    return strength / strength.sum(), lambda n: rng.dirichlet(strength, n)


def test_hoeffding_is_the_formula_of_the_books():
    expected = math.sqrt(math.log(2 * TOKENS / 0.05) / (2 * 1000))
    assert half_width(0.3, 1000, TOKENS, 0.05, "hoeffding") == pytest.approx(expected)


def test_bernstein_is_theorem_4_of_maurer_and_pontil():
    log = math.log(2 / (0.05 / (2 * TOKENS)))
    expected = math.sqrt(2 * 0.01 * log / 1000) + 7 * log / (3 * 999)
    assert half_width(0.01, 1000, TOKENS, 0.05) == pytest.approx(expected)


def test_bernstein_is_narrower_where_maps_vary_little():
    assert half_width(1e-4, 2000, TOKENS, 0.05) < half_width(1e-4, 2000, TOKENS, 0.05, "hoeffding")
    assert half_width(0.25, 2000, TOKENS, 0.05) > half_width(0.25, 2000, TOKENS, 0.05, "hoeffding")


@pytest.mark.parametrize("bound", ["bernstein", "hoeffding"])
def test_the_box_holds_the_expected_map_at_least_as_often_as_promised(bound):
    mean, draw = law()
    missed = 0
    for _ in range(200):
        limits = box(moments_of(draw(50)), 0.2, bound)
        missed += not ((limits.lower <= mean) & (mean <= limits.upper)).all()
    assert missed <= 0.2 * 200


def test_the_box_of_a_single_map_says_nothing():
    limits = box(Moments(np.full(4, 0.25), np.zeros(4), 1), 0.05)
    assert limits.lower.tolist() == [0] * 4
    assert limits.upper.tolist() == [1] * 4


@pytest.mark.parametrize("top", ["smoothed", "reported"])
def test_a_finite_sample_certifies_no_more_than_the_exact_map(top):
    """With 16 tokens a few thousand maps suffice: the radius is above 0, and below the exact."""
    mean, draw = law()
    for beta in (1.0, 0.75, 0.5):
        exact = best_radius(leaving(mean, 4, beta), 0.5).radius
        found = moments_of(draw(4000))
        radius = best_radius(worst_exchange(found, 4, beta, box(found, 0.05), top=top), 0.5).radius
        assert 0 < radius < exact
        more = moments_of(draw(40_000))
        closer = best_radius(worst_exchange(more, 4, beta, box(more, 0.05), top=top), 0.5).radius
        assert radius < closer < exact


def test_the_radius_is_zero_while_the_box_cannot_tell_the_top_k_from_the_rest():
    for n in (2, 21, 60):
        found = moments_of(law()[1](n))
        exchange = worst_exchange(found, 4, 0.75, box(found, 0.05))
        assert best_radius(exchange, 0.5).radius == 0


def test_a_near_tie_hides_the_smoothed_top_k_but_not_what_is_reported_of_it():
    """The 4th and 5th entry are equal: which is in the top 4 stays unknown; half of it holds."""
    mean = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.03, 0.02])
    found = Moments(mean, np.full(7, 1e-3), 20_000)
    limits = box(found, 0.05)
    assert best_radius(worst_exchange(found, 4, 0.5, limits), 1.0).radius == 0
    assert best_radius(worst_exchange(found, 4, 0.5, limits, top="reported"), 1.0).radius > 0.1
    assert samples_needed(found, 4, 0.5, eta=0.05) is None
    assert samples_needed(found, 4, 0.5, eta=0.05, top="reported") < 20_000
    # Of the very fourth place nothing can be said in either sense.
    assert best_radius(worst_exchange(found, 4, 1.0, limits, top="reported"), 1.0).radius == 0


def test_what_no_exchange_can_break_needs_no_sample():
    found = Moments(np.array([0.4, 0.3, 0.2, 0.1]), np.full(4, 0.1), 2)
    assert worst_exchange(found, 3, 0.3, box(found, 0.05)) is None


@pytest.mark.parametrize("bound", ["bernstein", "hoeffding"])
@pytest.mark.parametrize("top", ["smoothed", "reported"])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_number_that_is_needed_is_the_first_with_a_radius(bound, top, beta):
    pilot = moments_of(law()[1](200))
    n = samples_needed(pilot, 4, beta, eta=0.05, bound=bound, top=top)

    def radius(n):
        some = pilot._replace(n=n)
        return best_radius(worst_exchange(some, 4, beta, box(some, 0.05, bound), top=top), 0.5)[0]

    assert radius(n) > 0
    assert radius(n - 1) == 0


def test_the_number_that_a_gap_needs_follows_from_the_half_width():
    n = samples_needed_for_gap(0.02, 0.05, TOKENS, eta=0.05)
    assert 2 * half_width(0.05**2, n, TOKENS, 0.05) < 0.02
    assert 2 * half_width(0.05**2, n - 1, TOKENS, 0.05) >= 0.02
    assert samples_needed_for_gap(0.0, 0.05, TOKENS, eta=0.05) is None
    hoeffding = samples_needed_for_gap(0.02, 0.05, TOKENS, eta=0.05, bound="hoeffding")
    assert hoeffding == pytest.approx(2 * math.log(2 * TOKENS / 0.05) / 0.02**2, rel=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0, -0.1])
def test_an_impossible_error_probability_is_refused(eta):
    with pytest.raises(ValueError, match="eta is"):
        half_width(0.1, 100, 16, eta)
