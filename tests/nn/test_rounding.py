"""Weights as integers times a scale."""

import pytest
import torch

from diffit.nn.rounding import compensated, fit_scale, nearest


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(weight, scale, top):
    scale = scale.float()[..., None]
    return float((nearest(weight, scale, top) * scale - weight).square().sum())


def test_rounding_to_integers_is_to_the_nearest_even_at_halves():
    weight = torch.tensor([[-1.5, -0.5, 0.5, 0.49, 1.2, 9.0]])
    assert nearest(weight, torch.ones(1), 7).tolist() == [[-2, 0, 0, 0, 1, 7]]


def test_sixteen_levels_are_half_integers():
    weight = torch.linspace(-9, 9, 1000)[None]
    levels = nearest(weight, torch.ones(1), 7.5).unique()
    assert levels.tolist() == [i - 7.5 for i in range(16)]


@pytest.mark.parametrize("top", [7.5, 127])
def test_no_scale_below_the_one_that_holds_the_largest_weight_is_better(top):
    weight = draw(64, 32)
    found = fit_scale(weight, top)
    widest = weight.abs().amax(-1) / top
    for shrink in (1.0, 0.9, 0.8, 0.7, 0.6):
        assert error(weight, found, top) <= error(weight, shrink * widest, top)


def test_four_bits_of_normal_weights_come_near_the_best_uniform_grid():
    # The optimal uniform quantiser of 16 levels leaves 0.01154 of the variance (Max, 1960);
    # scales for groups of 32 follow the weights, and may do better.
    weight = draw(2000, 32)
    assert error(weight, fit_scale(weight, 7.5), 7.5) / weight.square().sum() < 0.0116


def test_weights_are_fitted_to_the_scale_as_it_is_kept():
    weight = draw(2000, 32)
    coarse = error(weight, fit_scale(weight, 7.5, dtype=torch.bfloat16), 7.5)
    assert coarse < 1.005 * error(weight, fit_scale(weight, 7.5), 7.5)


def test_weights_of_zero_have_the_scale_zero():
    assert fit_scale(torch.zeros(3, 8), 7.5).tolist() == [0, 0, 0]


def correlated(rows, inputs=48, seed=3):
    """Inputs that a few causes explain for the most part."""
    return draw(rows, 6, seed=seed) @ draw(6, inputs, seed=4) + 0.3 * draw(
        rows, inputs, seed=seed + 9
    )


@pytest.mark.parametrize("top", [1, 7.5, 127])
def test_compensation_keeps_the_output_better_on_other_inputs(top):
    weight, x = draw(30, 48), correlated(400)
    scale = fit_scale(weight, top)[:, None]
    other = correlated(400, seed=5)
    exact = other @ weight.T

    def gap(codes):
        return (other @ (codes * scale).T - exact).norm() / exact.norm()

    found = compensated(weight, scale, top, x.T @ x)
    assert gap(found) < 0.6 * gap(nearest(weight, scale, top))
    assert found.abs().max() <= top


def test_compensation_of_uncorrelated_inputs_is_rounding_to_the_nearest():
    weight = draw(30, 200)
    scale = fit_scale(weight, 127)[:, None]
    gram = torch.diag(draw(200, seed=1).square() + 1)
    assert torch.equal(compensated(weight, scale, 127, gram), nearest(weight, scale, 127))


def test_compensation_is_the_published_recursion():
    # Eq. 2 and 3 as they stand: of the inputs that are left, H^-1 loses a row and a column a step.
    weight, x = draw(5, 12).double(), correlated(100, 12).double()
    gram = x.T @ x
    scale = fit_scale(weight, 7.5)[:, None]
    rest, left = weight.clone(), gram.diagonal().argsort(descending=True).tolist()
    inverse = torch.linalg.inv(gram + 0.01 * gram.diagonal().mean() * torch.eye(12))
    expected = torch.empty_like(weight)
    while left:
        q = left[0]
        expected[:, q] = nearest(rest[:, q], scale[:, 0], 7.5)
        change = (rest[:, q] - expected[:, q] * scale[:, 0]) / inverse[q, q]
        rest -= change[:, None] * inverse[q]
        inverse = inverse - inverse[:, q, None] * inverse[q] / inverse[q, q]
        left = left[1:]
    assert torch.equal(compensated(weight, scale, 7.5, gram), expected.float())


def test_inputs_that_were_never_anything_do_no_harm():
    weight = draw(4, 8)
    scale = fit_scale(weight, 127)[:, None]
    assert torch.equal(
        compensated(weight, scale, 127, torch.zeros(8, 8)), nearest(weight, scale, 127)
    )
