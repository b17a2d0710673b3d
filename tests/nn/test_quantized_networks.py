"""Every network with integer layers: built, filled, moved, in all precisions."""

import pytest
import torch

from diffit.checkpoint import load
from diffit.hub import Card
from diffit.hub.pass_on import export
from diffit.model import ModelConfig, build_model, empty_model, fill, scales_of
from diffit.networks import NETWORKS
from diffit.nn.linears import LINEARS
from diffit.nn.packed import TernaryPackedConfig
from diffit.nn.quantized import Int4Config, Int8Config
from diffit.nn.swap import linears_in

SMALL = {
    "diffit": {"widths": (16, 32), "blocks": (1, 1), "time_width": 16},
    "latent-diffit": {"width": 32, "depth": 2, "heads": 4},
    "dit": {"width": 32, "depth": 2, "heads": 4},
    "uvit": {"width": 32, "depth": 3, "heads": 4},
    "mdt": {"width": 32, "depth": 3, "decoder": 1, "heads": 4},
    "dimr": {"widths": (32, 16), "depths": (3, 3), "heads": 4},
    "large-dit": {"width": 32, "depth": 2, "heads": 4},
}
KINDS = {
    "int8": (Int8Config(), 0.02),
    "int8 activations": (Int8Config(activations="int8"), 0.04),
    "int4": (Int4Config(), 0.25),
}
SCALED = {**KINDS, "ternary-packed": (TernaryPackedConfig(granularity="row"), 2.0)}
each = pytest.mark.parametrize("name", SMALL)
kinds = pytest.mark.parametrize("kind", KINDS)


def dense(name="dit"):
    """A model none of whose weights is zero."""
    model = build_model(
        ModelConfig(network=NETWORKS[name][0](size=8, channels=3, classes=3, **SMALL[name]))
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.network.requires_grad_(False)
    return model


def swapped(name="dit", kind="int8"):
    """The model of `dense` with integer layers."""
    model, config = dense(name), SCALED[kind][0]
    use = LINEARS[config.name]
    for path, layer in linears_in(model.network).items():
        model.network.set_submodule(path, use(layer, config))
    model.config = model.config.model_copy(update={"linear": config})
    return model


def evaluate(model):
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    return model.denoiser(x, torch.tensor([0.5, 2.0]), torch.tensor([0, 1]))


def test_this_file_knows_all_networks():
    assert SMALL.keys() == NETWORKS.keys()


@kinds
@each
def test_the_denoiser_hardly_changes(name, kind):
    exact, close = evaluate(dense(name)), evaluate(swapped(name, kind))
    assert 0 < (close - exact).norm() < KINDS[kind][1] * exact.norm()


@kinds
@each
def test_an_empty_model_is_filled(name, kind):
    source = swapped(name, kind)
    empty = empty_model(source.config)
    assert not linears_in(empty.network)
    fill(empty, source.network.state_dict().items())
    assert torch.equal(evaluate(empty), evaluate(source))


@each
def test_gradients_reach_the_image(name):
    def gradient(model):
        x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        clean = model.denoiser(x, torch.tensor(1.0), torch.tensor([1]))
        return torch.autograd.grad(clean.square().sum(), x)[0]

    exact = gradient(dense(name))
    for kind in ("int8", "int8 activations"):
        assert (gradient(swapped(name, kind)) - exact).norm() < 0.03 * exact.norm()


@each
def test_autocast(name):
    model = swapped(name, "int8 activations")
    exact = evaluate(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert (evaluate(model) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", SCALED)
def test_scales_are_loaded_and_passed_on_as_they_are(kind, tmp_path):
    model = swapped(kind=kind)
    scales = {key: model.network.state_dict()[key] for key in scales_of(model.network)}
    assert scales
    export(model, tmp_path / "half", card=Card(), dtype=torch.float16)
    again = load(tmp_path / "half", dtype=torch.bfloat16)
    assert again.denoiser.dtype == torch.bfloat16
    assert again.config.linear == model.config.linear
    for key, scale in scales.items():
        assert torch.equal(again.network.state_dict()[key], scale), key
        assert again.network.state_dict()[key].dtype == scale.dtype
