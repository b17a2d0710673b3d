"""Real numbers as integers times a scale."""

import pytest
import torch

from diffit.nn.rounding import fit_scale, round_tokens, rounded


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(weight, scale, top, importance=1.0):
    kept = rounded(weight, scale, top) * scale.float()[..., None]
    return float(((kept - weight).square() * importance).sum())


def test_rounding_to_integers_is_to_the_nearest_even_at_halves():
    weight = torch.tensor([[-1.5, -0.5, 0.5, 0.49, 1.2, 9.0]])
    assert rounded(weight, torch.ones(1), 7).tolist() == [[-2, 0, 0, 0, 1, 7]]


def test_sixteen_levels_are_half_integers():
    weight = torch.linspace(-9, 9, 1000)[None]
    levels = rounded(weight, torch.ones(1), 7.5).unique()
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


def test_what_matters_more_is_kept_better():
    weight, importance = draw(200, 32), draw(32, seed=1).square() ** 3
    weighted = fit_scale(weight, 7.5, importance=importance)
    assert error(weight, weighted, 7.5, importance) < 0.9 * error(
        weight, fit_scale(weight, 7.5), 7.5, importance
    )


def test_weights_are_fitted_to_the_scale_as_it_is_kept():
    weight = draw(2000, 32)
    coarse = error(weight, fit_scale(weight, 7.5, dtype=torch.bfloat16), 7.5)
    assert coarse < 1.005 * error(weight, fit_scale(weight, 7.5), 7.5)


def test_weights_of_zero_have_the_scale_zero():
    assert fit_scale(torch.zeros(3, 8), 7.5).tolist() == [0, 0, 0]


def test_tokens_fill_the_range_of_int8():
    codes, scale = round_tokens(torch.tensor([[0.5, -2.0, 1.0], [1e-3, 0.0, 1e-3]]))
    assert codes.tolist() == [[32, -127, 64], [127, 0, 127]]
    torch.testing.assert_close(scale, torch.tensor([[2 / 127], [1e-3 / 127]]))


def test_a_token_of_zeros_or_of_nearly_nothing_gives_zeros():
    codes, scale = round_tokens(torch.tensor([[0.0, 0.0], [1e-44, 0.0]]))
    assert not codes.any()
    assert scale.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_has_no_scale(bad):
    _, scale = round_tokens(torch.tensor([[1.0, bad], [1.0, 2.0]]))
    assert scale.isnan().tolist() == [[True], [False]]
