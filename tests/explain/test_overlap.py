"""Top-k certificates: recorded values, brute force, and a model whose smoothed map is exact."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from diffit.explain.overlap import (
    DIRECTIONS,
    ORDERS,
    Leaving,
    best_radius,
    least_divergence,
    leaving,
    must_leave,
    overlap,
    renyi,
    top_k,
)

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "smoothing.json").read_text())
RNG = np.random.default_rng(0)


def maps(count, sizes=(4, 8), spread=1.0):
    return [RNG.dirichlet([spread] * int(RNG.integers(*sizes))) for _ in range(count)]


@pytest.mark.parametrize("case", RECORDED["topk"], ids=range(len(RECORDED["topk"])))
def test_the_recorded_top_k_tables_are_met(case):
    w, k, beta, order = case["w"], case["k"], case["beta"], case["alpha"]
    assert overlap(w, case["w2"], k) == case["overlap"]
    assert must_leave(k, beta) == case["k0"]
    assert renyi(w, case["w2"], order) == pytest.approx(case["renyi_w_w2"], rel=1e-9)
    exchange = leaving(w, k, beta)
    assert (exchange is None) == case["vacuous"]
    for direction in DIRECTIONS:
        least = least_divergence(exchange, order, direction)
        pooled = least_divergence(exchange, order, direction, form="pooled")
        radius = best_radius(exchange, case["sigma"], orders=[order], directions=[direction]).radius
        assert least == pytest.approx(case[f"D_min_{direction}"], rel=1e-8)
        assert pooled == pytest.approx(case[f"D_pooled_{direction}"], rel=1e-8)
        assert radius == pytest.approx(case[f"radius_l2_{direction}"], rel=1e-8)


def test_the_overlap_lies_in_zero_to_one_and_is_symmetric():
    for a in maps(50, (5, 6)):
        b = RNG.dirichlet([1.0] * 5)
        assert overlap(a, b, 3) == overlap(b, a, 3)
        assert 0 <= overlap(a, b, 3) <= 1
        assert overlap(a, a, 3) == 1


def test_of_equal_entries_the_lower_place_counts():
    assert top_k([0.2, 0.3, 0.3, 0.2], 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("k", "beta", "k0"), [(10, 0.8, 3), (4, 0.75, 2), (4, 1.0, 1), (5, 0.3, 4)]
)
def test_the_number_that_must_leave_does_not_suffer_from_rounding(k, beta, k0):
    assert must_leave(k, beta) == k0


def brute_force(w, exchange_places, order, direction):
    """The least divergence over all q with q[down] <= t <= q[up], by a general optimiser."""
    down, up = exchange_places
    n = len(w)

    def objective(v):
        q = np.maximum(v[:n], 1e-12)
        p, r = (w, q) if direction == "forward" else (q, w)
        return np.log(np.sum(p**order * r ** (1 - order))) / (order - 1)

    inequalities = [{"type": "ineq", "fun": lambda v, i=i: v[n] - v[i]} for i in down]
    inequalities += [{"type": "ineq", "fun": lambda v, i=i: v[i] - v[n]} for i in up]
    whole = {"type": "eq", "fun": lambda v: v[:n].sum() - 1}
    start = np.append(np.full(n, 1 / n), 1 / n)
    found = minimize(objective, start, method="SLSQP", bounds=[(1e-9, 1)] * (n + 1),
                     constraints=[whole, *inequalities],
                     options={"maxiter": 500, "ftol": 1e-14})  # fmt: skip
    return found.fun


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("order", [1.1, 2.0, 5.0])
def test_the_least_divergence_is_what_brute_force_finds(order, direction):
    for w in maps(8):
        k = int(RNG.integers(1, len(w) - 1))
        for k0 in range(1, min(k, len(w) - k) + 1):
            beta = 1 - (k0 - 0.5) / k
            places = top_k(w, len(w))
            expected = brute_force(w, (places[k - k0 : k], places[k : k + k0]), order, direction)
            least = least_divergence(leaving(w, k, beta), order, direction)
            assert least == pytest.approx(expected, rel=2e-4, abs=2e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_entries_that_lie_the_right_way_already_cost_nothing(direction):
    """As where the reported top k is not that of the smoothed map: some of it lies below others."""
    for w in maps(10, (5, 8)):
        down, up = np.split(RNG.permutation(len(w))[:4], 2)
        expected = brute_force(w, (down, up), 2.0, direction)
        least = least_divergence(Leaving(w[down], w[up]), 2.0, direction)
        assert least == pytest.approx(max(expected, 0), rel=2e-4, abs=2e-6)


def test_the_threshold_form_is_never_above_the_pooled_one_and_often_below():
    ratios = []
    for w in maps(80, (6, 30), spread=0.5):
        k = len(w) // 2
        exchange = leaving(w, k, 0.5)
        for order in (1.1, 2.0, 10.0):
            for direction in DIRECTIONS:
                least = least_divergence(exchange, order, direction)
                pooled = least_divergence(exchange, order, direction, form="pooled")
                assert least <= pooled * (1 + 1e-9) + 1e-12
                ratios.append(pooled / least)
    assert np.mean(np.array(ratios) > 1.1) > 0.1


def cheap_exchange(w, k, k0):
    """The nearest map in which k0 of the top k lie just below others, among many thresholds."""
    places = top_k(w, len(w))
    down, up = places[k - k0 : k], places[k : k + k0]
    found = []
    for threshold in np.linspace(w[up].min(), w[down].max(), 400):
        q = w.copy()
        q[down] = np.minimum(w[down], threshold * (1 - 1e-6))
        q[up] = np.maximum(w[up], threshold * (1 + 1e-6))
        found.append(q / q.sum())
    return min(found, key=lambda q: renyi(w, q, 2.0))


def test_the_pooled_form_is_no_certificate():
    """There is a map nearer than its bound in which the overlap is lower than it promises."""
    w, k, beta = np.array([0.55, 0.15, 0.12, 0.1, 0.08]), 2, 0.4
    pooled = least_divergence(leaving(w, k, beta), 2.0, "forward", form="pooled")
    nearer = cheap_exchange(w, k, 2)
    assert overlap(w, nearer, k) < beta
    assert renyi(w, nearer, 2.0) < 0.95 * pooled
    assert renyi(w, nearer, 2.0) >= least_divergence(leaving(w, k, beta), 2.0, "forward")


def test_a_map_that_cannot_lose_so_many_entries_has_no_limit():
    assert leaving([0.4, 0.3, 0.2, 0.1], 3, 0.3) is None  # 3 must leave, only 1 can come
    assert best_radius(None, 0.5).radius == math.inf


def test_the_radius_grows_with_sigma():
    exchange = leaving(maps(1, (9, 10))[0], 3, 1.0)
    assert best_radius(exchange, 1.0).radius == pytest.approx(2 * best_radius(exchange, 0.5).radius)


def test_an_entry_of_zero_does_not_certify_all_of_space():
    exchange = leaving([0.6, 0.4, 0.0, 0.0], 2, 1.0)
    assert best_radius(exchange, 1.0).radius < 10


class LinearSoftmax:
    """softmax(A x + b) of a point in the plane; smoothed, its map is a Gaussian integral."""

    def __init__(self, seed, tokens=6):
        rng = np.random.default_rng(seed)
        self.slope, self.bias = rng.normal(size=(tokens, 2)) * 2, rng.normal(size=tokens)
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)
        self.nodes = np.stack([m.ravel() for m in np.meshgrid(nodes, nodes)], -1)
        self.weights = np.outer(weights, weights).ravel() / (2 * np.pi)

    def smoothed(self, x, sigma):
        """(T,) the exact smoothed map at x."""
        logits = (x + sigma * self.nodes) @ self.slope.T + self.bias
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return self.weights @ (shares / shares.sum(1, keepdims=True))


@pytest.mark.parametrize(("k", "beta"), [(2, 1.0), (3, 0.5), (3, 0.3)])
def test_no_perturbation_inside_the_radius_lowers_the_overlap(k, beta):
    """Not at the edge of the ball, nor at optimised places; eight times further out it does."""
    sigma, broken_outside = 0.8, 0
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    for seed in range(6):
        model = LinearSoftmax(seed)
        w = model.smoothed(np.zeros(2), sigma)
        end = best_radius(leaving(w, k, beta), sigma).radius
        kept = top_k(w, k)

        def margin(v, model=model, end=end, kept=kept):
            """How far the top k stay above the rest, at a place inside the ball."""
            x = v * min(1, end / max(np.linalg.norm(v), 1e-12))
            there = model.smoothed(x, sigma)
            rest = np.setdiff1d(np.arange(len(there)), kept)
            k0 = must_leave(k, beta)
            return np.sort(there[kept])[k0 - 1] - np.sort(there[rest])[-k0]

        places = [radius * point for radius in (end, 0.999 * end, end / 2) for point in circle]
        places += [minimize(margin, 0.9 * end * point, method="Nelder-Mead",
                            options={"maxfev": 60}).x for point in circle[::18]]  # fmt: skip
        for place in places:
            x = place * min(1, end / max(np.linalg.norm(place), 1e-12))
            assert overlap(w, model.smoothed(x, sigma), k) >= beta - 1e-9
        broken_outside += any(
            overlap(w, model.smoothed(8 * end * point, sigma), k) < beta for point in circle
        )
    assert broken_outside >= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k([0.5, 0.5], 3), "k is 3"),
        (lambda: top_k([0.5, 0.5], 0), "k is 0"),
        (lambda: must_leave(3, 0.0), "beta is 0"),
        (lambda: must_leave(3, 1.2), "beta is 1.2"),
        (lambda: leaving([0.5, 0.6], 1, 1.0), "its sum 1.1"),
        (lambda: leaving([1.5, -0.5], 1, 1.0), "smallest entry is -0.5"),
        (lambda: leaving([float("nan"), 1.0], 1, 1.0), "smallest entry is nan"),
        (lambda: renyi([0.5, 0.5], [0.5, 0.5], 1), "must be above 0 and not 1"),
        (
            lambda: least_divergence(Leaving(np.array([0.5]), np.array([0.1])), 1.0, "forward"),
            "must be above 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_best_order_and_direction_are_those_of_the_table():
    exchange = leaving(maps(1, (9, 10))[0], 3, 1.0)
    best = best_radius(exchange, 1.0)
    every = [best_radius(exchange, 1.0, orders=[order], directions=[direction]).radius
             for order in ORDERS for direction in DIRECTIONS]  # fmt: skip
    assert best.radius == max(every)
    assert best_radius(exchange, 1.0, orders=[best.order], directions=[best.direction]) == best
