"""Linear layers with integer weights."""

import pytest
import torch
from torch import nn

from diffit.errors import CheckpointError
from diffit.nn import quantized
from diffit.nn.quantized import Int4Config, Int4Linear, Int8Config, Int8Linear

KINDS = {
    "int8": lambda layer: Int8Linear.of(layer, Int8Config()),
    "int8 activations": lambda layer: Int8Linear.of(layer, Int8Config(activations="int8")),
    "int4": lambda layer: Int4Linear.of(layer, Int4Config()),
    "int4, group 8": lambda layer: Int4Linear.of(layer, Int4Config(group=8)),
}
WEIGHTS_ALONE = ("int8", "int4", "int4, group 8")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(inputs=44, outputs=30, *, bias=True):
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(draw(outputs, inputs))
        if bias:
            layer.bias.copy_(draw(outputs, seed=1))
    return layer.requires_grad_(False)


def real(layer):
    """(out, in) float64 weights of an integer layer."""
    return layer.weight_rows(0, layer.out_features, torch.float32).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", WEIGHTS_ALONE)
def test_it_is_a_linear_layer_of_the_rounded_weights(kind, bias):
    before = dense(bias=bias)
    layer, x = KINDS[kind](before), draw(5, 7, 44, seed=2)
    exact = x.double() @ real(layer).T + (before.bias if bias else 0)
    torch.testing.assert_close(layer(x).double(), exact, atol=1e-5, rtol=1e-5)
    assert layer.bias is None or torch.equal(layer.bias, before.bias)


def test_eight_bits_are_within_half_a_step():
    before = dense()
    layer = Int8Linear.of(before, Int8Config())
    assert ((real(layer) - before.weight).abs() <= layer.scale[:, None] * 0.5001).all()


def test_no_weight_is_further_off_than_its_group_allows():
    before = dense(44, 30)
    layer = Int4Linear.of(before, Int4Config(group=8))
    steps = layer.scale.float().repeat_interleave(8, dim=1)[:, :44]
    gap = (real(layer) - before.weight).abs()
    inside = before.weight.abs() <= 7.5 * steps
    assert (gap[inside] <= 0.5001 * steps[inside]).all()
    assert inside.float().mean() > 0.85  # the widest of eight may lie outside


def test_two_weights_share_a_byte():
    layer = Int4Linear(8, 1, bias=False, group=8)
    layer.scale.fill_(1)
    layer.codes.copy_(torch.tensor([[[0x10, 0x32, 0x54, 0xF6]]]))
    assert (real(layer) + 7.5).tolist() == [[0, 2, 4, 6, 1, 3, 5, 15]]


@pytest.mark.parametrize(
    ("inputs", "group", "shape"),
    [(64, 32, (2, 16)), (20, 32, (1, 10)), (96, 64, (2, 24)), (5, 4, (2, 2)), (1, 2, (1, 1))],
)
def test_inputs_are_shared_out_evenly(inputs, group, shape):
    before, x = dense(inputs, 3), draw(2, inputs)
    layer = Int4Linear.of(before, Int4Config(group=group))
    assert layer.codes.shape == (3, *shape)
    torch.testing.assert_close(layer(x), before(x), atol=0.3 * inputs**0.5, rtol=0)


def test_bytes_of_a_weight():
    def bits(layer):
        return 8 * sum(b.nbytes for b in layer.buffers()) / (128 * 64)

    before = dense(128, 64)
    assert bits(Int8Linear.of(before, Int8Config())) == 8.25
    assert bits(Int4Linear.of(before, Int4Config(group=32))) == 4.5
    assert bits(Int4Linear.of(before, Int4Config(group=128))) == 4.125


def test_rounded_activations_are_products_of_integers():
    before = dense()
    layer, x = Int8Linear.of(before, Int8Config(activations="int8")), draw(6, 44, seed=2)
    scale = x.abs().amax(1, keepdim=True).double() / 127
    codes = (x / scale).round()
    whole = codes.double() @ layer.codes.double().T
    exact = whole * scale * layer.scale.double() + before.bias
    torch.testing.assert_close(layer(x).double(), exact, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layer(x), Int8Linear.of(before, Int8Config())(x), atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 15, 17, 64])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (8, 8), (33, 18)])
def test_any_size_and_number_of_rows(sizes, rows):
    before, x = dense(*sizes), draw(rows, sizes[0], seed=2)
    layer = Int8Linear.of(before, Int8Config(activations="int8"))
    close = Int8Linear.of(before, Int8Config())(x)
    room = 0.5 * layer.scale * (x.abs().amax(1) / 127)[:, None] * layer.codes.abs().float().sum(1)
    assert ((layer(x) - close).abs() <= room * 1.001 + 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_no_rows(kind):
    assert KINDS[kind](dense())(torch.empty(0, 44)).shape == (0, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_rounded_weights(kind):
    layer = KINDS[kind](dense())
    x, out = draw(5, 44, seed=2).requires_grad_(), draw(5, 30, seed=3)
    (gradient,) = torch.autograd.grad(layer(x), x, out)
    torch.testing.assert_close(gradient.double(), out.double() @ real(layer), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", WEIGHTS_ALONE)
def test_few_weights_are_real_at_a_time(kind, monkeypatch):
    layer, x = KINDS[kind](dense()), draw(5, 44, seed=2).requires_grad_()
    whole = layer(x)
    gradient = torch.autograd.grad(whole.sum(), x)[0]
    most = []
    original = layer.weight_rows
    monkeypatch.setattr(quantized, "BLOCK", 100)
    monkeypatch.setattr(
        layer, "weight_rows", lambda a, b, d: most.append((b - a) * 44) or original(a, b, d)
    )
    torch.testing.assert_close(layer(x), whole)
    torch.testing.assert_close(torch.autograd.grad(layer(x).sum(), x)[0], gradient)
    assert max(most) == 88


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_not_finite_spoils_no_other(kind):
    layer, x = KINDS[kind](dense()), draw(4, 44, seed=2)
    clean = layer(x)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    spoilt = layer(x)
    assert not spoilt[1].isfinite().any()
    assert not spoilt[2].isfinite().any()
    torch.testing.assert_close(spoilt[[0, 3]], clean[[0, 3]])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_zeros_give_the_bias(kind):
    before = dense()
    assert torch.equal(KINDS[kind](before)(torch.zeros(2, 44)), before.bias.expand(2, 30))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_zero_stay_zero(kind):
    before = dense()
    before.weight.zero_()
    assert torch.equal(KINDS[kind](before)(draw(2, 44)), before.bias.expand(2, 30))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind, dtype):
    layer, x = KINDS[kind](dense()), draw(6, 44, seed=2)
    wide = layer(x)
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype == dtype
        torch.testing.assert_close(layer(x).float(), wide, atol=0.15, rtol=0.02)
    narrow = layer.to(dtype)(x.to(dtype))
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.float(), wide, atol=0.15, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_keep_their_precision(kind):
    layer = KINDS[kind](dense())
    scale = layer.scale.clone()
    layer.to(torch.float16).double()
    assert torch.equal(layer.scale, scale)
    assert layer.scale.dtype == scale.dtype
    assert layer.bias.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_fills_a_layer_without_memory(kind):
    layer = KINDS[kind](dense())
    with torch.device("meta"):
        empty = KINDS[kind](nn.Linear(44, 30))
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(draw(3, 44)), layer(draw(3, 44)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        ("codes", lambda t: t.float(), "tensor codes is float32, but these weights are .*int8"),
        ("scale", lambda t: t.double(), "tensor scale is float64, but these scales are"),
        ("scale", lambda t: t / 0, "tensor scale has numbers that are not finite"),
    ],
)
def test_what_is_no_such_layer_is_refused(kind, name, spoil, sentence):
    layer = KINDS[kind](dense())
    state = layer.state_dict()
    state[name] = spoil(state[name])
    with pytest.raises(CheckpointError, match=sentence):
        layer.load_state_dict(state, assign=True)


def test_an_odd_group_is_refused():
    with pytest.raises(ValueError, match="group is 7; two weights share a byte"):
        Int4Linear(8, 8, group=7)
