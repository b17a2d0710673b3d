"""Frechet and kernel distances against closed forms, SciPy and sums written out."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from diffit.evaluation.distances import BLOCK, frechet, frechet_spread, kid, kid_of_subsets
from diffit.evaluation.moments import Gaussian, Moments


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_of(x: torch.Tensor) -> Gaussian:
    moments = Moments(x.shape[1])
    moments.update(x)
    return moments.gaussian()


def test_frechet_in_one_dimension_is_the_distance_of_means_and_deviations():
    a = Gaussian(torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double())
    b = Gaussian(torch.tensor([-2.0]).double(), torch.tensor([[0.25]]).double())
    assert frechet(a, b) == pytest.approx(3.0**2 + (2 - 0.5) ** 2)


def test_frechet_of_axis_aligned_gaussians_in_closed_form_and_under_rotation():
    s, t = torch.rand(6).double() + 0.1, torch.rand(6).double() + 0.1
    m = normal(6)
    turn = torch.linalg.qr(normal(6, 6, seed=1)).Q
    expected = float(m.square().sum() + (s - t).square().sum())
    plain = frechet(Gaussian(m, s.square().diag()), Gaussian(0 * m, t.square().diag()))
    turned = frechet(
        Gaussian(turn @ m, turn @ s.square().diag() @ turn.T),
        Gaussian(0 * m, turn @ t.square().diag() @ turn.T),
    )
    assert plain == pytest.approx(expected, rel=1e-12)
    assert turned == pytest.approx(expected, rel=1e-11)


def test_frechet_of_a_set_with_itself_is_zero():
    for count in (20, 200):  # fewer and more than the dimensions
        g = gaussian_of(normal(count, 64))
        assert frechet(g, g) == pytest.approx(0, abs=1e-11)


def test_frechet_agrees_with_scipys_matrix_root():
    a, b = gaussian_of(normal(300, 40)), gaussian_of(normal(400, 40, seed=1) * 1.3 + 0.2)
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
    expected = (
        (a.mean - b.mean).square().sum()
        + a.covariance.trace()
        + b.covariance.trace()
        - 2 * np.trace(root).real
    )
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-12)


def test_frechet_of_singular_covariances_in_closed_form():
    u, v = normal(30), normal(30, seed=1)
    zero = torch.zeros(30, dtype=torch.float64)
    # (u u' v v')^(1/2) has the one eigenvalue |u.v|.
    expected = u @ u + v @ v - 2 * (u @ v).abs()
    found = frechet(Gaussian(zero, u.outer(u)), Gaussian(zero, v.outer(v)))
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_frechet_refuses_other_dimensions():
    with pytest.raises(ValueError, match="5 features against 4"):
        frechet(gaussian_of(normal(9, 5)), gaussian_of(normal(9, 4)))


def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x @ y / len(x) + 1) ** 3)


def kid_written_out(x: torch.Tensor, y: torch.Tensor) -> float:
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i, j in itertools.permutations(range(n), 2)) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i, j in itertools.permutations(range(m), 2)) / (m * (m - 1))
    xy = sum(kernel(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def test_kid_is_the_sum_over_pairs():
    x, y = normal(7, 5), normal(9, 5, seed=1) + 0.3
    assert float(kid(x, y)) == pytest.approx(kid_written_out(x, y), rel=1e-12)


def test_kid_in_blocks_equals_kid_at_once():
    x, y = normal(BLOCK + 5, 3), normal(40, 3, seed=1)
    whole = (x @ x.T / 3 + 1) ** 3
    n = len(x)
    within = (whole.sum() - whole.diagonal().sum()) / (n * (n - 1))
    parts = (y @ y.T / 3 + 1) ** 3
    reference = (parts.sum() - parts.diagonal().sum()) / (40 * 39)
    across = ((x @ y.T / 3 + 1) ** 3).mean()
    assert float(kid(x, y)) == pytest.approx(float(within + reference - 2 * across), rel=1e-10)


def test_kid_of_one_distribution_is_zero_on_average():
    values = [
        float(kid(normal(20, 4, seed=2 * s), normal(20, 4, seed=2 * s + 1))) for s in range(400)
    ]
    mean, error = np.mean(values), np.std(values) / 20
    assert abs(mean) < 3 * error
    # The biased estimator, which counts an image with itself, would miss by far more.
    assert error < 0.02


def test_a_weight_counts_an_image_so_often_but_never_with_itself():
    x, y = normal(5, 4), normal(6, 4, seed=1)
    weights = torch.tensor([[2.0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = kid(x, y, weights)
    order = [0, 0, 2, 3, 4]
    pairs = [(i, j) for i, j in itertools.permutations(range(5), 2) if order[i] != order[j]]
    within = sum(kernel(x[order[i]], x[order[j]]) for i, j in pairs) / len(pairs)
    yy = sum(kernel(y[i], y[j]) for i, j in itertools.permutations(range(6), 2)) / 30
    across = sum(kernel(x[i], b) for i in order for b in y) / 30
    assert float(found[0]) == pytest.approx(within + yy - 2 * across, rel=1e-12)
    assert float(found[1]) == pytest.approx(float(kid(x, y)), rel=1e-12)


def test_subsets_follow_from_the_seed_and_their_mean_is_near_kid():
    x, y = normal(120, 4), normal(150, 4, seed=1) + 0.5
    first = kid_of_subsets(x, y, size=60, subsets=100, seed=3)
    assert torch.equal(first, kid_of_subsets(x, y, size=60, subsets=100, seed=3))
    assert not torch.equal(first, kid_of_subsets(x, y, size=60, subsets=100, seed=4))
    assert float(first.mean()) == pytest.approx(float(kid(x, y)), abs=4 * float(first.std()) / 10)
    with pytest.raises(ValueError, match="subsets of 130 from 120 and 150 images"):
        kid_of_subsets(x, y, size=130, subsets=1, seed=0)


def test_kid_refuses_single_images():
    with pytest.raises(ValueError, match="2 images a side, not 1 and 4"):
        kid(normal(1, 3), normal(4, 3))


def test_the_fast_form_for_spreads_agrees_with_the_exact_one():
    reference = gaussian_of(normal(300, 30))
    ones = [gaussian_of(normal(200, 30, seed=seed) * 1.1 + 0.1) for seed in range(1, 4)]
    exact = torch.tensor([frechet(one, reference) for one in ones], dtype=torch.float64)
    torch.testing.assert_close(frechet_spread(ones, reference), exact, rtol=1e-9, atol=1e-9)
