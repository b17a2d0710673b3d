"""Every network, with the linear layers in its blocks swapped."""

import pytest
import torch
from torch import nn

from diffit.errors import ConfigError
from diffit.model import ModelConfig, build_model, empty_model, matrices_of
from diffit.networks import NETWORKS
from diffit.nn.linears import DenseConfig, use_linears_
from diffit.nn.swap import linears_in, swap_linears_
from diffit.nn.ternary import TernaryConfig, TernaryLinear

SMALL = {
    "diffit": {"widths": (16, 32), "blocks": (1, 1), "time_width": 16},
    "latent-diffit": {"width": 32, "depth": 2, "heads": 4},
    "dit": {"width": 32, "depth": 2, "heads": 4},
    "uvit": {"width": 32, "depth": 3, "heads": 4},
    "mdt": {"width": 32, "depth": 3, "decoder": 1, "heads": 4},
    "dimr": {"widths": (32, 16), "depths": (3, 3), "heads": 4},
}
each = pytest.mark.parametrize("name", SMALL)


def config(name="dit", **linear):
    network = NETWORKS[name][0](size=8, channels=3, classes=3, **SMALL[name])
    return ModelConfig(network=network, linear=TernaryConfig(**linear))


def evaluate(model):
    torch.manual_seed(0)
    x = torch.randn(2, *model.shape)
    return model.denoiser(x, torch.tensor([0.5, 2.0]), torch.tensor([0, 1]))


def stirred(config):
    """A model none of whose weights is zero."""
    model = build_model(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Toy(nn.Module):
    """Two blocks that share a layer, and a head outside them."""

    def __init__(self):
        super().__init__()
        self.column = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}) for _ in range(2)
        )
        self.column[1]["up"] = self.column[0]["up"]
        self.head = nn.Linear(4, 4)

    def blocks(self):
        return self.column


def test_layers_are_swapped_by_name_and_what_is_shared_stays_shared():
    toy = Toy()
    names = swap_linears_(toy, lambda layer: nn.Identity(), lambda name: name.endswith("up"))
    assert names == ["column.0.up", "column.1.up"]
    assert isinstance(toy.column[0]["up"], nn.Identity)
    assert toy.column[1]["up"] is toy.column[0]["up"]
    assert isinstance(toy.column[0]["down"], nn.Linear)
    assert isinstance(toy.head, nn.Linear)


@each
def test_all_linear_layers_of_the_blocks_become_ternary_and_no_others(name):
    dense = build_model(config(name).model_copy(update={"linear": DenseConfig()})).network
    ternary = build_model(config(name)).network
    made = [n for n, layer in ternary.named_modules() if isinstance(layer, TernaryLinear)]
    assert made == list(linears_in(dense))
    masters = dict(ternary.named_parameters())
    for key, value in dense.named_parameters():
        assert torch.equal(masters.pop(key), value), key
    assert sorted(masters) == sorted(f"{n}.scale" for n in made)


@each
def test_every_master_and_scale_of_a_network_learns(name):
    model = stirred(config(name))
    network = model.network
    extra = {}
    if hasattr(network, "choose_seen"):
        extra = {"seen": network.choose_seen(torch.rand(2), torch.rand(2, network.config.tokens))}
    every = getattr(network, "pyramid", lambda *given, **more: [network(*given, **more)])
    x, time = torch.randn(2, *model.shape), torch.rand(2)
    out = every(x, time, torch.tensor([0, 1]), **extra)
    sum(prediction.square().sum() for prediction in out).backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@each
def test_activation_checkpointing_and_autocast_go_with_ternary_layers(name):
    model = stirred(config(name))
    gradients = []
    for flag in (False, True):
        model.network.activation_checkpointing = flag
        model.network.zero_grad()
        evaluate(model).square().sum().backward()
        gradients.append([p.grad for p in model.network.parameters() if p.grad is not None])
    for plain, redone in zip(*gradients, strict=True):
        assert torch.equal(plain, redone)
    exact = evaluate(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = evaluate(model)
    assert (low - exact).norm() < 0.05 * exact.norm()


@each
def test_an_empty_model_is_filled_with_masters_and_scales(name):
    source = stirred(config(name, granularity="row"))
    empty = empty_model(source.config)
    shapes = {key: tensor.shape for key, tensor in source.network.state_dict().items()}
    assert {k: t.shape for k, t in empty.network.state_dict().items()} == shapes
    empty.network.load_state_dict(source.network.state_dict(), assign=True)
    assert torch.equal(evaluate(empty), evaluate(source))


def test_the_official_scales_follow_from_the_seed_of_the_model():
    first, again, other = (
        build_model(config(initial_scale="official"), seed=seed).network.state_dict()
        for seed in (0, 0, 1)
    )
    key = "column.0.attention.qkv.scale"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


def test_skipped_layers_stay_dense():
    network = build_model(config(skip=("column.0.*", "*.modulation"))).network
    kinds = {name: type(layer) for name, layer in linears_in(network).items()}
    ternary = {name for name, kind in kinds.items() if kind is TernaryLinear}
    assert ternary == {n for n in kinds if not n.startswith("column.0.") and "modul" not in n}
    assert len(ternary) == 4


def test_a_pattern_that_skips_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"skip 'column.0.atention.qkv' is the name of no linear"):
        build_model(config(skip=("column.0.atention.qkv",)))


def test_dense_layers_are_left_alone():
    network = build_model(config().model_copy(update={"linear": DenseConfig()})).network
    before = dict(network.named_modules())
    assert use_linears_(network, DenseConfig()) == []
    assert dict(network.named_modules()) == before


def test_the_name_of_a_kind_stands_for_its_settings():
    settings = config().model_dump() | {"linear": "ternary"}
    assert ModelConfig.model_validate(settings) == config()


def test_masters_are_none_of_the_matrices_that_are_kept_in_low_precision():
    network = build_model(config(skip=("column.0.attention.qkv",))).network
    names = {name for name in matrices_of(network) if name.endswith("weight")}
    assert names == {"column.0.attention.qkv.weight"}
