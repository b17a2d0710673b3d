"""The packed ternary layer multiplies with exactly its codes and scale, wherever it was kept."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from conftest import FIXTURES
from diffit.errors import CheckpointError
from diffit.model import ModelConfig, build_model, check_shapes, empty_model, fill
from diffit.networks import DiTConfig
from diffit.nn import packed
from diffit.nn.packed import PackedTernary, TernaryPackedConfig, keep_weights_
from diffit.nn.ternary import TernaryConfig, TernaryLinear, dequantise, ternarise
from diffit.nn.tiles import rows_to_tiles

SCALES = {"tensor": (1,), "row": (40,), "group": (40, 3)}


def layer_of(scale: str = "tensor", *, bias: bool = True, **settings: Any) -> PackedTernary:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (40, 24), generator=draw, dtype=torch.int8)
    return PackedTernary.from_codes(
        codes,
        torch.randn(SCALES[scale], generator=draw),
        torch.randn(40, generator=draw) if bias else None,
        **settings,
    )


def dense(layer: PackedTernary) -> torch.Tensor:
    """The weights in full precision, by the definition."""
    groups = layer.scale.reshape(len(layer.scale), -1)
    scale = groups.repeat_interleave(layer.in_features // groups.shape[1], dim=1)
    return layer.unpack().float() * scale


@pytest.mark.parametrize("name", ["linear", "linear_nobias"])
def test_output_and_input_gradient_are_those_of_the_reference(name):
    recorded = load_file(FIXTURES / "terdit_tiny.safetensors")
    recorded = {key.split(".")[1]: t for key, t in recorded.items() if key.startswith(f"{name}.")}
    layer = PackedTernary.from_codes(recorded["ternary"], recorded["alphas"], recorded.get("bias"))
    assert torch.equal(layer.codes, rows_to_tiles(recorded["packed"], *recorded["ternary"].shape))
    tolerance = {"atol": 2e-5, "rtol": 1e-5}
    torch.testing.assert_close(layer(recorded["input"]), recorded["output"], **tolerance)
    x = recorded["input"].requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, recorded["output"], **tolerance)
    y.backward(recorded["grad_output"])
    torch.testing.assert_close(x.grad, recorded["grad_input"], **tolerance)


@pytest.mark.parametrize("panel", [1, 1 << 23])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_it_is_the_linear_layer_of_its_weights(monkeypatch, scale, bias, panel):
    monkeypatch.setattr(packed, "PANEL_WEIGHTS", panel)
    layer = layer_of(scale, bias=bias)
    x = torch.randn(2, 5, 24, requires_grad=True)
    right = F.linear(x, dense(layer), layer.bias)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), right)
    y = layer(x)
    torch.testing.assert_close(y, right)
    toward = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, x, toward), torch.autograd.grad(right, x, toward), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_its_gradient_can_be_differentiated_again():
    layer, x = layer_of(), torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), x)


def test_a_graph_keeps_no_weights_in_full_precision():
    kept = []
    x = torch.randn(3, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer_of(bias=False)(x)
    assert all(t.numel() < 40 * 24 for t in kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_give_their_own(dtype):
    layer, x = layer_of("row").to(dtype), torch.randn(7, 24).to(dtype)
    assert layer.scale.dtype == torch.float32
    right = F.linear(x.float(), dense(layer), layer.bias.float())
    assert layer(x).dtype == dtype
    torch.testing.assert_close(layer(x).float(), right, atol=0.05, rtol=0.05)


def test_autocast_is_followed():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer_of()(torch.randn(2, 24)).dtype == torch.bfloat16


@pytest.mark.parametrize("storage", ["2-bit", "base-3"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_gives_the_layer_back(storage, assign):
    layer = layer_of("group", storage=storage)
    state = layer.state_dict()
    # 40 x 24 weights: 3 x 2 tiles of 64 bytes, or five weights a byte.
    assert state["codes"].numel() == (384 if storage == "2-bit" else 192)
    with torch.device("meta" if assign else "cpu"):
        other = PackedTernary(24, 40, scale_shape=(40, 3), storage=storage)
    shapes = {name: t.shape for name, t in other.state_dict().items()}
    assert shapes == {name: t.shape for name, t in state.items()}
    other.load_state_dict(state, assign=assign)
    x = torch.randn(2, 24)
    assert torch.equal(other.unpack(), layer.unpack())
    assert torch.equal(other(x), layer(x))


def test_it_is_empty_until_filled():
    layer = PackedTernary(24, 40)
    assert not layer.unpack().any()
    assert torch.equal(layer(torch.randn(2, 24)), torch.zeros(2, 40))
    assert torch.equal(copy.deepcopy(layer).codes, layer.codes)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("codes", lambda t: t | 3, "0.codes has codes of 3"),
        ("codes", lambda t: t[:1], "0.codes is uint8 of shape"),
        ("codes", lambda t: t.float(), "0.codes is float32"),
        ("scale", lambda t: t * torch.nan, "0.scale has numbers that are not finite"),
        ("scale", lambda t: t.double() * 1e300, "0.scale has numbers that are not finite"),
        ("scale", lambda t: t[:0], "0.scale has shape"),
        ("scale", lambda t: t.int(), "0.scale has numbers that are not finite"),
    ],
)
def test_damaged_tensors_are_refused_in_one_sentence(name, spoil, message):
    column = nn.Sequential(layer_of())
    state = column.state_dict()
    state[f"0.{name}"] = spoil(state[f"0.{name}"])
    with pytest.raises(CheckpointError, match=message):
        column.load_state_dict(state, assign=True)


def test_a_layer_without_memory_takes_none():
    assert PackedTernary(1 << 22, 1 << 22, device="meta").codes.is_meta  # 4 TB otherwise


@pytest.mark.parametrize("shape", [(), (2,), (40, 5), (24, 3), (40, 0), (40, 3, 1)])
def test_a_scale_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit 24 inputs and 40 outputs"):
        PackedTernary(24, 40, scale_shape=shape)


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_a_ternary_layer_is_packed_exactly(granularity):
    config = {"granularity": granularity, "group": 8}
    ternary = TernaryLinear.of(nn.Linear(24, 40), TernaryConfig(**config, initial_scale="official"))
    layer = PackedTernary.of(ternary, TernaryPackedConfig(**config))
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), ternary(x), atol=1e-6, rtol=1e-6)
    assert torch.equal(dense(layer), dequantise(*ternary.ternary()))


def test_a_dense_layer_becomes_its_ternary_neighbour():
    source = nn.Linear(24, 40, bias=False)
    layer = PackedTernary.of(source, TernaryPackedConfig(granularity="row"))
    found = ternarise(source.weight.detach(), granularity="row")
    assert torch.equal(layer.unpack(), found.codes)
    assert torch.equal(layer.scale, found.scale)
    assert layer.bias is None


@pytest.mark.parametrize("storage", ["2-bit", "base-3"])
def test_a_packed_network_is_built_and_filled_again(storage):
    network = DiTConfig(size=8, channels=3, classes=3, width=32, depth=2, heads=4)
    linear = TernaryPackedConfig(granularity="row", storage=storage, skip=("*.modulation",))
    source = build_model(ModelConfig(network=network, linear=linear))
    # The zeros that a DiT starts from would hide the rest.
    nn.init.normal_(source.network.head.weight)
    state = source.network.state_dict()
    empty = empty_model(source.config)
    check_shapes(empty, {name: t.shape for name, t in state.items()}, source="x")
    fill(empty, state.items())
    x = torch.randn(2, *source.shape)
    sigma, label = torch.tensor([0.5, 2.0]), torch.tensor([0, 1])
    with torch.no_grad():
        out = source.denoiser(x, sigma, label)
        assert torch.equal(empty.denoiser(x, sigma, label), out)
    packed_layers = [m for m in empty.network.modules() if isinstance(m, PackedTernary)]
    assert packed_layers
    assert all(layer.codes.dtype == torch.uint8 for layer in packed_layers)


@pytest.mark.parametrize("scale", SCALES)
def test_rounded_conditions_that_repeat_are_multiplied_once_and_change_no_bit(monkeypatch, scale):
    layer = layer_of(scale, activations="int8")
    x = torch.randn(2, 24)[torch.tensor([0, 0, 1, 0, 1, 1, 0])]
    apart = torch.cat([layer(row[None]) for row in x])
    seen, multiply = [], layer._rounded_product
    monkeypatch.setattr(packed, "SEARCH_WEIGHTS", 1)
    monkeypatch.setattr(layer, "_rounded_product", lambda rows: seen.append(rows) or multiply(rows))
    assert torch.equal(layer(x), apart)
    assert torch.equal(layer(x[None])[0], apart)  # tokens are not compared
    assert [len(rows) for rows in seen] == [2, 7]


def test_kept_weights_change_nothing_and_follow_the_codes():
    column = nn.Sequential(layer_of("row"))
    layer, x = column[0], torch.randn(3, 24)
    before = column(x)
    keep_weights_(column)
    torch.testing.assert_close(column(x), before)
    assert layer._kept is not None
    assert column.state_dict().keys() == nn.Sequential(layer_of("row")).state_dict().keys()
    assert column(x.bfloat16()).dtype == torch.bfloat16
    other = nn.Sequential(layer_of("row", bias=False))
    zeros = {name: torch.zeros_like(t) for name, t in column.state_dict().items()}
    column.load_state_dict({**zeros, "0.codes": other[0].codes})
    assert torch.equal(column(x), torch.zeros(3, 40))
    assert column.to(torch.float64)[0]._kept is None
    keep_weights_(column, keep=False)
    column(x.double())
    assert layer._kept is None
