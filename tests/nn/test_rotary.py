"""Rotary embedding on a grid and on a line: scores see displacements alone."""

import cmath

import pytest
import torch

from diffit.nn.rotary import Rotary, axial_rotation, line_rotation, turn_pairs


def test_a_channel_pair_is_a_complex_number_that_turns():
    rotary = Rotary((2, 3), 8)
    x = torch.randn(1, 1, 6, 8)
    turned = rotary(x)
    row, column = 1, 2
    token, omega = 3 * row + column, [1.0, 10000**-0.5]
    for k in range(2):
        for place, first in ((row, k), (column, 4 + k)):
            before = complex(x[0, 0, token, first], x[0, 0, token, first + 2])
            after = complex(turned[0, 0, token, first], turned[0, 0, token, first + 2])
            assert after == pytest.approx(before * cmath.exp(1j * place * omega[k]), abs=1e-5)


def test_scores_depend_on_displacements_alone():
    rotary = Rotary((4, 4), 16).double()
    q, k = (torch.randn(16).double().expand(1, 1, 16, 16) for _ in range(2))
    scores = (rotary(q) @ rotary(k).mT)[0, 0].view(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3], atol=1e-6, rtol=1e-6)
    assert (scores[0, 0, 1, 2] - scores[0, 0, 2, 1]).abs() > 1e-3


def test_lengths_stay():
    x = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(Rotary((2, 3), 8)(x).norm(dim=-1), x.norm(dim=-1))


def test_bfloat16_stays_bfloat16():
    assert Rotary((2, 2), 8).bfloat16()(torch.ones(1, 1, 4, 8).bfloat16()).dtype == torch.bfloat16


def test_odd_heads_are_refused():
    line = torch.arange(2.0)
    with pytest.raises(ValueError, match="4 must divide them"):
        axial_rotation(line, line, 6)


def test_on_a_line_neighbouring_channels_are_a_complex_number_that_turns():
    x = torch.randn(1, 1, 5, 8)
    turned = turn_pairs(x, line_rotation(5, 8))
    for k in range(4):
        before = complex(x[0, 0, 3, 2 * k], x[0, 0, 3, 2 * k + 1])
        after = complex(turned[0, 0, 3, 2 * k], turned[0, 0, 3, 2 * k + 1])
        assert after == pytest.approx(before * cmath.exp(3j * 10000 ** (-k / 4)), abs=1e-5)


def test_on_a_line_scores_depend_on_the_distance_alone():
    rotation = line_rotation(16, 8).double()
    q, k = (torch.randn(8).double().expand(1, 1, 16, 8) for _ in range(2))
    scores = (turn_pairs(q, rotation) @ turn_pairs(k, rotation).mT)[0, 0]
    torch.testing.assert_close(scores[2, 5], scores[9, 12], atol=1e-6, rtol=1e-6)
    assert (scores[2, 5] - scores[5, 2]).abs() > 1e-3


def test_on_a_line_odd_heads_are_refused():
    with pytest.raises(ValueError, match="heads of 3 channels cannot turn; 2 must divide them"):
        line_rotation(4, 3)
