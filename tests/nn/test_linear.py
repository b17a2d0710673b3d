"""The linear layer is torch's, by whichever product it is computed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffit.nn import linear as module
from diffit.nn.linear import Linear, linear

SHAPES = [(8, 16, 6), (128, 6), (2, 3, 48, 6), (7, 6), (6,), (0, 6), (67, 6), (1, 1024, 6)]


@pytest.mark.parametrize("by_convolution", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_torchs(monkeypatch, by_convolution, shape, bias):
    monkeypatch.setattr(module, "_is_amd_with_avx512", lambda: by_convolution)
    torch.manual_seed(0)
    layer, x = Linear(6, 10, bias=bias), torch.randn(shape, requires_grad=True)
    inputs = [x, *layer.parameters()]
    ours, theirs = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous()
    toward = torch.randn_like(ours)
    for mine, right in zip(
        torch.autograd.grad(ours, inputs, toward),
        torch.autograd.grad(theirs, inputs, toward),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-4)


def test_autocast_still_casts(monkeypatch):
    monkeypatch.setattr(module, "_is_amd_with_avx512", lambda: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Linear(6, 10)(torch.randn(32, 6)).dtype == torch.bfloat16


def test_it_is_a_torch_layer_for_everybody_else():
    layer = Linear(6, 10)
    assert isinstance(layer, nn.Linear)
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_a_transposed_input_is_read_in_its_own_order(monkeypatch):
    monkeypatch.setattr(module, "_is_amd_with_avx512", lambda: True)
    x, layer = torch.randn(2, 6, 64), Linear(6, 10)
    torch.testing.assert_close(linear(x.mT, layer.weight, layer.bias), layer(x.mT.contiguous()))
