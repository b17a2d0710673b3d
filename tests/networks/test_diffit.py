"""The open choices of image-space DiffiT are settings, and each one acts."""

import pytest
import torch
import torch.nn.functional as F

from diffit.networks.count import count_parameters
from diffit.networks.diffit import DiffiT, DiffiTConfig, DiffiTResBlock

BASE = {"size": 16, "widths": (16, 32, 32), "blocks": (1, 1, 1), "time_width": 32, "groups": 8}


def build(**changes):
    torch.manual_seed(0)
    network = DiffiT(DiffiTConfig(**BASE | changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def output(network, **more):
    torch.manual_seed(1)
    return network(torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 0.5]), **more)


CHANGES = [
    {"skip": "feed"},
    {"skip": "add"},
    {"upsample": "transposed"},
    {"downsample": "bilinear"},
    {"decoder_entry": "conv1"},
    {"decoder_entry": "none"},
    {"norm_affine": False},
    {"norm_order": "swish-norm"},
    {"head_silu": True},
    {"groups": 4},
    {"heads": 2},
    {"window": 2},
    {"mlp_ratio": 2.0},
    {"time_embedding": "fourier"},
    {"time_features": 64},
    {"widths": (16, 16, 32)},
    {"blocks": (2, 1, 1)},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_choice_gives_another_network_that_trains(change):
    network = build(**change)
    out = output(network)
    assert out.shape == (2, 3, 16, 16)
    assert not torch.allclose(out, output(build()), atol=1e-3)
    out.square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]


def test_a_block_is_the_equation():
    config = DiffiTConfig(**BASE)
    block, x, time = DiffiTResBlock(config, level=1, channels=16), torch.randn(2, 16, 8, 8), None
    time = torch.randn(2, 32)
    u = block.conv.conv(F.silu(block.conv.norm(x)))
    inner, tokens = block.block, u.flatten(2).mT
    tokens = tokens + inner.attention(inner.norm1(tokens), time)
    tokens = tokens + inner.mlp(inner.norm2(tokens))
    expected = tokens.mT.view(2, 32, 8, 8) + block.shortcut(x)
    torch.testing.assert_close(block(x, time), expected, atol=1e-5, rtol=1e-4)


def test_windows_shrink_to_small_maps():
    config = DiffiTConfig(size=(16, 8), widths=(16, 16, 16), blocks=(1, 1, 1), window=4)
    assert [config.window_at(level) for level in range(3)] == [(4, 4), (4, 4), (4, 2)]


def test_augmentation_label_counts_as_zeros_when_missing():
    network = build(augment=True)
    zeros = output(network, augment=torch.zeros(2, 9))
    torch.testing.assert_close(output(network), zeros)
    assert not torch.allclose(output(network, augment=torch.ones(2, 9)), zeros, atol=1e-3)
    more = count_parameters(network) - count_parameters(build())
    assert more == 9 * 128  # the bias-free layer of the specification


def test_one_level_is_a_column():
    network = build(widths=(16,), blocks=(3,))
    assert len(network.blocks()) == 3
    assert output(network).shape == (2, 3, 16, 16)


def test_an_untrained_network_predicts_nearly_nothing():
    torch.manual_seed(0)
    network = DiffiT(DiffiTConfig(**BASE))
    assert 0 < output(network).abs().max() < 1e-2


def test_blocks_come_in_the_order_in_which_they_act():
    network, seen = build(), []
    for place, block in enumerate(network.blocks()):
        block.register_forward_hook(lambda *_, place=place: seen.append(place))
    output(network)
    assert seen == list(range(5))


def test_the_digits_size_is_small():
    config = DiffiTConfig(
        size=8, channels=1, classes=10, widths=(64, 64), blocks=(1, 1), time_width=128
    )
    assert config.window_at(1) == (4, 4)
    assert count_parameters(DiffiT(config)) < 700_000
