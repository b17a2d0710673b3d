"""GELU equals torch's tanh form, value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from diffit.nn import gelu as module
from diffit.nn.gelu import gelu


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(3, 1000), (0, 4), ()])
def test_it_is_torchs(monkeypatch, dtype, atol, shape):
    monkeypatch.setattr(module, "CHUNK", 256)
    torch.manual_seed(0)
    x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    ours, theirs = gelu(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)
    gradients = [torch.autograd.grad(out.sum(), x)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_far_out_it_is_zero_or_the_identity():
    x = torch.tensor([-1e30, -30.0, 0.0, 30.0, 1e18])
    assert gelu(x).tolist() == [0, 0, 0, 30, torch.tensor(1e18).item()]


def test_x_is_overwritten_only_where_allowed():
    x = torch.randn(2, 3)
    before = x.clone()
    expected = gelu(x)
    assert torch.equal(x, before)
    assert gelu(x, overwrite=True) is x
    assert torch.equal(x, expected)
    learned = before.clone().requires_grad_()
    gelu(learned, overwrite=True)
    assert torch.equal(learned, before)


def test_a_transposed_input_is_read_in_its_own_order():
    x = torch.randn(4, 6).mT
    torch.testing.assert_close(gelu(x, overwrite=True), F.gelu(x, approximate="tanh"))
