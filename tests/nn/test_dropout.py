"""Dropout masks are functions of key, layer and element."""

import pytest
import torch
from torch import nn

from diffit.nn.dropout import Dropout, dropout, hashed, number_dropouts

KEYS = torch.tensor([0, 1, 2, 1 << 40, -5, (1 << 62) + 7])


def test_a_mask_does_not_depend_on_the_batch():
    x = torch.ones(6, 10, 7)
    whole = dropout(x, 0.3, KEYS, 4)
    for i, key in enumerate(KEYS):
        assert torch.equal(dropout(x[i : i + 1], 0.3, key[None], 4)[0], whole[i])


def test_the_hash_is_fixed():
    # computed with Python's integers from the definition; training runs depend on it
    assert hashed(torch.tensor([5]), 3, 3).tolist() == [[expected(5, 3, i) for i in range(3)]]


def expected(key, salt, element):
    low = 2**31 - 1

    def mix(h):
        h = (h ^ (h >> 16)) * 0x7FEB352D & low
        h = (h ^ (h >> 15)) * 0x846CA68B & low
        return h ^ (h >> 16)

    row = mix(mix((key & low) ^ (salt * 0x9E3779B9 & low)) ^ (key >> 31 & low) ^ (key >> 62 & 3))
    return mix(row ^ mix(element))


def test_no_product_leaves_64_bits():
    assert (2**31 - 1) * max(0x7FEB352D, 0x846CA68B) < 2**63


def test_numbers_are_uniform_and_independent():
    numbers = hashed(torch.arange(64), 1, 4096).double() / 2**31
    assert numbers.mean() == pytest.approx(0.5, abs=3e-3)
    assert numbers.var() == pytest.approx(1 / 12, abs=1e-3)
    flat = numbers - 0.5
    neighbours = [(flat[1:] * flat[:-1]), (flat[:, 1:] * flat[:, :-1])]
    other = hashed(torch.arange(64), 2, 4096).double() / 2**31 - 0.5
    for product in [*neighbours, flat * other]:
        assert abs(product.mean()) < 4 / 12 / product.numel() ** 0.5


def test_the_mean_is_kept_and_the_share_is_right():
    out = dropout(torch.ones(6, 40000), 0.13, KEYS, 1)
    assert (out == 0).double().mean() == pytest.approx(0.13, abs=0.003)
    assert out.mean() == pytest.approx(1, abs=0.004)


def test_without_keys_nothing_is_dropped():
    x = torch.randn(2, 3)
    assert Dropout(0.5)(x, None) is x
    assert Dropout(0.0)(x, KEYS[:2]) is x
    with pytest.raises(ValueError, match="below 1"):
        Dropout(1.0)


def test_layers_have_masks_of_their_own():
    network = nn.Sequential(Dropout(0.5), nn.Sequential(Dropout(0.5)))
    number_dropouts(network)
    masks = [layer(torch.ones(1, 64), KEYS[:1]) for layer in (network[0], network[1][0])]
    assert not torch.equal(*masks)
