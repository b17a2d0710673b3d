"""Blocks and their parts."""

import pytest
import torch
import torch.nn.functional as F

from diffit.nn.attention import SelfAttention
from diffit.nn.blocks import (
    GLU,
    MLP,
    AdaptiveBlock,
    NormConv,
    TimeNormBlock,
    TransformerBlock,
    diffit_block,
    downsample,
    from_windows,
    run,
    swiglu_hidden,
    to_windows,
    upsample,
)
from diffit.nn.norm import AdaptiveNorm, map_norm


def test_mlp_has_the_tanh_form_of_gelu():
    mlp, x = MLP(4, 9), torch.randn(2, 3, 4)
    expected = mlp.down(F.gelu(mlp.up(x), approximate="tanh"))
    torch.testing.assert_close(mlp(x), expected)


def test_mlp_may_have_the_exact_gelu():
    mlp, x = MLP(4, 8, exact=True), torch.randn(2, 3, 4)
    torch.testing.assert_close(mlp(x), mlp.down(F.gelu(mlp.up(x))))


def test_time_is_added_to_the_hidden_units():
    mlp, x, time = MLP(4, 9, time_width=5), torch.randn(2, 3, 4), torch.randn(2, 5)
    expected = mlp.down(F.gelu(mlp.up(x) + mlp.up_time(time)[:, None], approximate="tanh"))
    torch.testing.assert_close(mlp(x, time), expected)


def test_swiglu_is_gated():
    mlp, x = GLU(4, 9), torch.randn(2, 3, 4)
    gate = mlp.gate(x)
    expected = mlp.down(gate * torch.sigmoid(gate) * mlp.up(x))
    torch.testing.assert_close(mlp(x), expected)


def test_swiglu_is_as_large_as_an_mlp():
    assert swiglu_hidden(1152, 4.0) == 3072
    assert swiglu_hidden(64, 4.0) == 192
    count = [sum(p.numel() for p in m.parameters()) for m in (GLU(1152, 3072), MLP(1152, 4608))]
    assert count[0] == pytest.approx(count[1], rel=1e-3)


def test_swiglu_takes_no_time():
    with pytest.raises(ValueError, match="takes no time token"):
        diffit_block(8, 6, heads=2, grid=(2, 2), hidden=16, mlp="swiglu", time_into="mlp")


def test_adaptive_norm_scales_and_shifts():
    x, shift, scale = torch.randn(2, 3, 8), torch.randn(2, 8), torch.randn(2, 8)
    expected = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(AdaptiveNorm(8)(x, shift, scale), expected)


def test_a_closed_gate_leaves_the_tokens():
    block = AdaptiveBlock(SelfAttention(8, heads=2), 8, 6, hidden=16)
    torch.nn.init.zeros_(block.modulation.weight)
    torch.nn.init.zeros_(block.modulation.bias)
    x = torch.randn(2, 4, 8)
    assert torch.equal(block(x, torch.randn(2, 6)), x)


def test_a_normed_modulation_has_unit_size_whatever_the_layer_before():
    block = AdaptiveBlock(SelfAttention(8, heads=2), 8, 6, hidden=16, modulation_norm=True)
    torch.nn.init.zeros_(block.modulation.bias)
    x, time = torch.randn(2, 4, 8), torch.randn(2, 6)
    made = block.modulation(F.silu(time))
    shift, scale, gate = (made / made.square().mean(1, keepdim=True).add(1e-5).sqrt())[
        :, :24
    ].chunk(3, dim=1)
    torch.nn.init.zeros_(block.mlp.down.weight)
    torch.nn.init.zeros_(block.mlp.down.bias)
    expected = x + gate[:, None] * block.attention(AdaptiveNorm(8)(x, shift, scale), time)
    torch.testing.assert_close(block(x, time), expected)
    with torch.no_grad():
        block.modulation.weight.mul_(100)
    torch.testing.assert_close(block(x, time), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("at", ["hidden", "branches"])
@pytest.mark.parametrize("kind", [TransformerBlock, AdaptiveBlock, TimeNormBlock])
def test_dropout_acts_where_it_is_told(at, kind):
    time = (6,) if kind is AdaptiveBlock else ()
    norm = {"kind": "td-rms"} if kind is TimeNormBlock else {}
    block = kind(SelfAttention(8, heads=2), 8, *time, hidden=16, dropout=0.5, dropout_at=at, **norm)
    layers = {"hidden": ["mlp.dropout"], "branches": ["dropout1", "dropout2"]}
    active = [n for n, m in block.named_modules() if getattr(m, "probability", 0)]
    assert sorted(active) == layers[at]
    x, token = torch.randn(2, 4, 8), torch.randn(2) if norm else torch.randn(2, 6)
    dropped = block(x, token, torch.tensor([1, 2]))
    assert not torch.equal(dropped, block(x, token))
    torch.testing.assert_close(dropped[1:], block(x[1:], token[1:], torch.tensor([2])))


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("kind", ["td-rms", "td-ln"])
def test_a_block_whose_norms_know_the_time_is_what_it_says(kind, mlp):
    block = diffit_block(8, 6, heads=2, grid=(2, 2), hidden=16, time_into=kind, mlp=mlp)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, tau = torch.randn(2, 4, 8), torch.tensor([-1.0, 2.0])
    attended = x + block.attention(block.norm1(x, tau), torch.zeros(2, 6))
    expected = attended + block.mlp(block.norm2(attended, tau))
    torch.testing.assert_close(block(x, tau), expected)
    assert not torch.allclose(block(x, tau.flip(0)), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "squares", "singles"),
    [
        ({"time_into": "mlp", "norm": "rms", "affine": True}, 0, 2),
        ({"time_into": "td-rms"}, 0, 8),
        ({"time_into": "td-ln"}, 0, 16),
        ({"time_into": "norm"}, 6, 6),
    ],
)
def test_what_the_norms_of_a_block_cost(settings, squares, singles):
    width = 48
    block = diffit_block(width, width, heads=2, grid=(2, 2), hidden=96, **settings)
    inside = [p for n, p in block.named_parameters() if n.startswith(("norm", "modulation"))]
    assert sum(p.numel() for p in inside) == squares * width**2 + singles * width


@pytest.mark.parametrize("order", ["norm-swish", "swish-norm"])
def test_norm_and_swish_come_in_the_order_asked_for(order):
    layer, x = NormConv(8, 4, groups=32, order=order), torch.randn(2, 8, 4, 4)
    inner = F.silu(layer.norm(x)) if order == "norm-swish" else layer.norm(F.silu(x))
    torch.testing.assert_close(layer(x), layer.conv(inner))


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (48, 16), (6, 2), (7, 1)])
def test_group_norm_takes_a_divisor_of_the_channels(channels, groups):
    assert map_norm(channels, groups=32).num_groups == groups


def test_bilinear_halving_is_the_mean_of_four():
    x = torch.randn(1, 2, 4, 6)
    torch.testing.assert_close(downsample(2, "bilinear")(x), F.avg_pool2d(x, 2))


def test_resampling_halves_and_doubles():
    x = torch.randn(1, 4, 6, 8)
    assert downsample(4, "conv")(x).shape == (1, 4, 3, 4)
    for kind in ("nearest", "transposed"):
        assert upsample(4, kind)(x).shape == (1, 4, 12, 16)


def test_maps_become_windows_and_maps_again():
    x = torch.randn(2, 3, 4, 6)
    windows = to_windows(x, (2, 2))
    assert windows.shape == (2, 6, 4, 3)
    assert windows[0, 4, 3].tolist() == x[0, :, 3, 3].tolist()  # window row 1, column 1; its last
    assert torch.equal(from_windows(windows, (4, 6), (2, 2)), x)


def test_a_checkpointed_block_has_the_same_gradients():
    torch.manual_seed(0)
    block = diffit_block(8, 6, heads=2, grid=(2, 2), hidden=16, dropout=0.3)
    x, time, keys = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 6), torch.arange(2)
    gradients = []
    for checkpointed in (False, True):
        out = run(block, x, time, keys, checkpointed=checkpointed)
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *block.parameters()]))
    for plain, redone in zip(*gradients, strict=True):
        assert torch.equal(plain, redone)
