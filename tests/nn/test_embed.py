"""Patches, tables and embeddings against their formulas."""

import math

import pytest
import torch

from diffit.nn.embed import (
    Fourier,
    LabelEmbedding,
    TimeEmbedding,
    dit_features,
    patchify,
    positional_features,
    sincos_grid,
    unpatchify,
)


def test_patches_are_a_convolution():
    x, kernel = torch.randn(2, 3, 4, 6), torch.randn(5, 3, 2, 2)
    expected = torch.nn.functional.conv2d(x, kernel, stride=2).flatten(2).mT
    torch.testing.assert_close(patchify(x, 2) @ kernel.flatten(1).T, expected)


def test_unpatchify_puts_row_column_channel():
    tokens = torch.zeros(1, 6, 2 * 2 * 3)
    tokens[0, 4, (1 * 2 + 0) * 3 + 2] = 1  # patch (1, 1) of a 2 x 3 grid; pixel (1, 0), channel 2
    x = unpatchify(tokens, (2, 3), 2)
    assert x.shape == (1, 3, 4, 6)
    assert x.nonzero().tolist() == [[0, 2, 3, 2]]


def test_position_table_puts_the_column_first():
    table = sincos_grid((3, 5), 8)
    a, b, omega = 2, 4, (1, 0.01)
    expected = [f(p * w) for p in (b, a) for f in (math.sin, math.cos) for w in omega]
    torch.testing.assert_close(table[a * 5 + b], torch.tensor(expected))
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_grid((2, 2), 6)


def test_dit_features_put_cosines_first():
    expected = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03), 0]
    torch.testing.assert_close(dit_features(torch.tensor([3.0]), 5)[0], torch.tensor(expected))


def test_positional_features_end_at_a_ten_thousandth():
    expected = [math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]
    features = positional_features(torch.tensor([3.0]), 4)[0]
    torch.testing.assert_close(features, torch.tensor(expected))


def test_fourier_features_are_those_of_their_frequencies():
    fourier = Fourier(4)
    fourier.frequencies.copy_(torch.tensor([0.5, 0.25]))
    expected = torch.tensor([[-1.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(fourier(torch.ones(1)), expected, atol=1e-6, rtol=0)


def test_time_stays_apart_in_bfloat16():
    embed = TimeEmbedding(8, features=256, kind="dit").bfloat16()
    near = embed._features(torch.tensor([998.0, 999.0]))
    assert (near[0] - near[1]).abs().max() > 0.5
    assert embed(torch.tensor([998.0])).dtype == torch.bfloat16


def test_odd_features_are_for_dit_alone():
    assert TimeEmbedding(4, features=5, kind="dit")(torch.ones(2)).shape == (2, 4)
    with pytest.raises(ValueError, match="must be even"):
        TimeEmbedding(4, features=5, kind="positional")


def test_no_label_is_the_last_row():
    embed = LabelEmbedding(3, 4)
    assert torch.equal(embed(None, 2), embed(torch.tensor([3, 3]), 2))
    assert len(LabelEmbedding(3, 4, null=False).table.weight) == 3
