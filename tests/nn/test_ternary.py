"""Ternary linear layers against the reference of TerDiT, and closed forms of their scales."""

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.errors import CheckpointError, ConfigError
from diffit.nn.linear import Linear
from diffit.nn.ternary import (
    TernaryConfig,
    TernaryLinear,
    dequantise,
    straight_through,
    ternarise,
)

REFERENCE = load_file(FIXTURES / "terdit_tiny.safetensors")
FORMS = [
    {"kind": kind, "granularity": granularity, "group": 8}
    for kind in ("learned", "absmean", "least-squares")
    for granularity in ("tensor", "row", "group")
]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f['kind']}-{f['granularity']}")


def reference(prefix):
    """The recorded layer, and the same one here."""
    kept = {k.partition(".")[2]: t for k, t in REFERENCE.items() if k.startswith(f"{prefix}.")}
    outputs, inputs = kept["weight"].shape
    layer = TernaryLinear(inputs, outputs, bias="bias" in kept)
    with torch.no_grad():
        layer.weight.copy_(kept["weight"])
        layer.scale.copy_(kept["alphas"])
        if "bias" in kept:
            layer.bias.copy_(kept["bias"])
    return layer, kept


def layer(inputs=24, outputs=16, *, seed=0, **form):
    torch.manual_seed(seed)
    made = TernaryLinear(inputs, outputs, **form)
    torch.nn.init.normal_(made.weight)
    made.fit_scale()
    return made


@pytest.mark.parametrize("prefix", ["linear", "linear_nobias"])
def test_codes_and_gamma_are_the_reference(prefix):
    recorded, kept = reference(prefix)
    assert torch.equal(recorded.ternary().codes, kept["ternary"])
    assert torch.equal(recorded.ternary().scale, kept["alphas"])
    torch.testing.assert_close(ternarise(kept["weight"], kind="absmean").scale, kept["gamma"])


@pytest.mark.parametrize("prefix", ["linear", "linear_nobias"])
def test_output_and_straight_through_gradients_are_the_reference(prefix):
    recorded, kept = reference(prefix)
    x = kept["input"].clone().requires_grad_()
    y = recorded(x)
    y.backward(kept["grad_output"])
    found = {"output": y, "grad_input": x.grad, "grad_weight": recorded.weight.grad,
             "grad_alphas": recorded.scale.grad}  # fmt: skip
    if recorded.bias is not None:
        found["grad_bias"] = recorded.bias.grad
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-6, rtol=1e-5, msg=name)


def test_whole_matrices_of_the_reference_have_their_packed_codes():
    names = [k.removeprefix("master.") for k in REFERENCE if k.startswith("master.")]
    assert len(names) == 16
    for name in names:
        codes = (ternarise(REFERENCE[f"master.{name}"]).codes + 1).to(torch.uint8)
        quarters = codes.chunk(4)
        packed = sum(quarter << 2 * (3 - i) for i, quarter in enumerate(quarters))
        assert torch.equal(packed, REFERENCE[f"model.{name}"]), name


def test_codes_round_half_to_even():
    # So large that adding 1e-6 to gamma, 2000, does nothing: quotients of exactly 1/2 and 3/2.
    weight = torch.tensor([[1000.0, -1000.0, 3000.0, -3000.0]])
    assert ternarise(weight).codes.tolist() == [[0, 0, 1, -1]]


@pytest.mark.parametrize(
    ("granularity", "shape"), [("tensor", (1,)), ("row", (16,)), ("group", (16, 3))]
)
def test_least_squares_is_the_nearest_scale_of_the_codes(granularity, shape):
    torch.manual_seed(0)
    weight = torch.randn(16, 24)
    codes, scale = ternarise(weight, granularity=granularity, group=8)
    assert scale.shape == shape
    distance = (weight - dequantise(codes, scale)).square().sum()
    for factor in (0.99, 1.01):
        assert (weight - dequantise(codes, factor * scale)).square().sum() > distance
    absmean = ternarise(weight, kind="absmean", granularity=granularity, group=8)
    assert torch.equal(absmean.codes, codes)
    assert (weight - dequantise(*absmean)).square().sum() > distance


def test_normal_weights_have_the_known_share_of_zeros_and_scale():
    torch.manual_seed(0)
    codes, scale = ternarise(torch.randn(512, 512))
    # P(|w| < gamma / 2) with gamma = sqrt(2 / pi), and E |w| above that.
    assert (codes == 0).float().mean() == pytest.approx(0.310, abs=0.004)
    assert scale.item() == pytest.approx(1.068, abs=0.004)


@each_form
def test_a_layer_multiplies_with_its_ternary_form(form):
    made = layer(**form)
    x = torch.randn(2, 5, 24)
    codes, scale = made.ternary()
    assert set(codes.unique().tolist()) == {-1, 0, 1}
    expected = torch.nn.functional.linear(x, dequantise(codes, scale), made.bias)
    torch.testing.assert_close(made(x), expected, atol=1e-6, rtol=1e-5)


@each_form
def test_gradients_pass_straight_through(form):
    made = layer(**form)
    x, back = torch.randn(7, 24), torch.randn(7, 16)
    made(x).backward(back)
    product = back.T @ x
    codes, scale = made.ternary()
    if form["kind"] != "learned":
        assert made.scale is None
        torch.testing.assert_close(made.weight.grad, product, atol=1e-5, rtol=1e-5)
        return
    each = dequantise(torch.ones_like(codes), scale)
    torch.testing.assert_close(made.weight.grad, each * product, atol=1e-5, rtol=1e-5)
    summed = (codes * product).reshape(scale.numel(), -1).sum(1).view(scale.shape)
    torch.testing.assert_close(made.scale.grad, summed, atol=1e-4, rtol=1e-5)


def test_a_matrix_of_zeros_multiplies_to_zero_and_still_learns():
    made = TernaryLinear.of(zeros(), TernaryConfig())
    x = torch.randn(64, 24)
    assert made.scale.item() == pytest.approx((0.69 * 24) ** -0.5)
    out = made(x)
    assert not out.any()
    out.sum().backward()
    assert made.weight.grad.all()
    assert not made.scale.grad.any()


def zeros():
    dense = Linear(24, 16)
    for parameter in dense.parameters():
        torch.nn.init.zeros_(parameter)
    return dense


def test_the_first_step_of_adam_opens_a_matrix_of_zeros_at_once():
    made = TernaryLinear.of(zeros(), TernaryConfig())
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-4)
    (made(torch.randn(64, 24)) * torch.randn(64, 16)).sum().backward()
    optimiser.step()
    assert made.ternary().codes.abs().float().mean() == 1


@each_form
def test_the_twin_of_a_dense_layer_has_its_parameters(form):
    dense = Linear(24, 16)
    config = TernaryConfig(
        scale=form["kind"], granularity=form["granularity"], group=8, initial_scale="absmean"
    )
    twin = TernaryLinear.of(dense, config)
    assert twin.weight is dense.weight
    assert twin.bias is dense.bias
    if twin.scale is not None:
        expected = ternarise(dense.weight, kind="absmean", granularity=form["granularity"], group=8)
        assert torch.equal(twin.scale, expected.scale)


def test_the_official_scale_is_drawn_and_may_be_negative():
    config = TernaryConfig(initial_scale="official", granularity="row")
    torch.manual_seed(0)
    first = TernaryLinear.of(Linear(24, 64), config).scale
    torch.manual_seed(0)
    assert torch.equal(TernaryLinear.of(Linear(24, 64), config).scale, first)
    assert first.min() < -1
    assert first.std().item() == pytest.approx(1, abs=0.3)


def test_a_twin_on_the_meta_device_has_no_memory():
    with torch.device("meta"):
        twin = TernaryLinear.of(Linear(24, 16, bias=False), TernaryConfig(granularity="row"))
    assert {name: tuple(p.shape) for name, p in twin.named_parameters()} == {
        "weight": (16, 24), "scale": (16,)}  # fmt: skip
    assert all(p.is_meta for p in twin.parameters())


def test_groups_divide_the_inputs():
    with pytest.raises(ConfigError, match="group 7 does not divide the 24 inputs"):
        TernaryLinear(24, 16, granularity="group", group=7)


def test_a_matrix_that_is_not_finite_has_no_ternary_form():
    with pytest.raises(CheckpointError, match="not finite"):
        ternarise(torch.tensor([[1.0, float("nan")]]))


def test_a_layer_whose_masters_are_not_finite_says_so_in_its_output():
    made = layer()
    with torch.no_grad():
        made.weight[0, 0] = float("nan")
    assert made(torch.randn(3, 24)).isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_no_codes(dtype):
    made = layer(outputs=64)
    x = torch.randn(16, 24)
    with torch.autocast("cpu", dtype=dtype):
        low = made(x)
    assert low.dtype == dtype
    codes, scale = made.ternary()
    exact = x.to(dtype).float() @ dequantise(codes, scale).T + made.bias
    assert (low.float() - exact).norm() < 5e-3 * exact.norm()


def test_straight_through_keeps_the_value_exactly():
    weight = torch.full((3,), 1e8, requires_grad=True)
    value = torch.tensor([0.1, 0.2, 0.3])
    through = straight_through(weight, value)
    assert torch.equal(through, value)
    through.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert weight.grad.tolist() == [1.0, 2.0, 3.0]
