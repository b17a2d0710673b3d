"""Time-dependent norms against their formulas, and what an untrained one is."""

import pytest
import torch
from torch import nn

from diffit.nn.time_norm import TimeVector, time_norm, time_rows

KINDS = ["td-rms", "td-ln"]
each = pytest.mark.parametrize("kind", KINDS)


def randomised(kind, width=8):
    torch.manual_seed(0)
    norm = time_norm(width, kind)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn_like(parameter))
    return norm


def test_a_vector_goes_from_its_low_to_its_high_end():
    vector = TimeVector(3, 1.0)
    with torch.no_grad():
        vector.high.copy_(torch.tensor([2.0, 3.0, 4.0]))
        vector.offset.fill_(0.3)
        vector.slope.copy_(torch.tensor([0.0, 1.0, -2.0]))
    value = vector(torch.tensor([-1e4, 0.0, 1e4]))
    middle = torch.sigmoid(torch.tensor(0.3)) * (vector.high - 1) + 1
    torch.testing.assert_close(value[1], middle)
    # The last channel has a negative slope, 1 - 2.
    torch.testing.assert_close(value[0], torch.tensor([1.0, 1.0, 4.0]))
    torch.testing.assert_close(value[2], torch.tensor([2.0, 3.0, 1.0]))


@pytest.mark.parametrize(("kind", "each_channel"), [("td-rms", 4), ("td-ln", 8)])
def test_the_number_of_weights_is_that_of_the_paper(kind, each_channel):
    assert sum(p.numel() for p in time_norm(960, kind).parameters()) == each_channel * 960


@each
def test_an_untrained_norm_is_an_ordinary_one(kind):
    x, tau = torch.randn(2, 5, 8), torch.tensor([-1.0, 0.7])
    plain = nn.RMSNorm(8, eps=0.0) if kind == "td-rms" else nn.LayerNorm(8)
    torch.testing.assert_close(time_norm(8, kind)(x, tau), plain(x))


@each
def test_one_row_serves_a_batch_of_one_time(kind):
    norm, x = randomised(kind), torch.randn(3, 4, 5, 8)
    one = norm(x, torch.tensor([0.4]))
    torch.testing.assert_close(one, norm(x, torch.full((3,), 0.4)))
    assert not torch.allclose(one, norm(x, torch.tensor([0.4, 0.4, 0.9])), atol=1e-3)


@each
def test_the_formula_holds(kind):
    norm, x, tau = randomised(kind), torch.randn(2, 5, 8), torch.tensor([-1.0, 0.7])
    scale = norm.scale(tau)[:, None]
    if kind == "td-rms":
        expected = scale * x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-8)
    else:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        expected = scale * (x - mean) / (variance + 1e-5).sqrt() + norm.shift(tau)[:, None]
    torch.testing.assert_close(norm(x, tau), expected)


def test_a_token_of_zeros_stays_one():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = time_norm(8, "td-rms")(torch.zeros(1, 2, 8, dtype=dtype), torch.zeros(1))
        assert out.dtype == dtype
        assert not out.any()


def test_a_time_for_all_makes_one_row():
    level = torch.tensor(2.0)
    assert time_rows(level.expand(6), scale=0.25, shift=1).tolist() == [1.5]
    assert time_rows(torch.full((3,), 2.0), scale=0.25).tolist() == [0.5] * 3
    assert time_rows(torch.tensor([2.0]), scale=0.25).tolist() == [0.5]
