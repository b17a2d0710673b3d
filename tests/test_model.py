"""Models: built from settings and a seed alone; settings that contradict each other are refused."""

import pytest
import torch

from diffit.config import parse
from diffit.errors import ConfigError
from diffit.model import ModelConfig, build_model, empty_model, fill, matrices_of
from tiny import NETWORK


def config(network=None, **settings):
    content = {"network": {**NETWORK, **(network or {})}, **settings}
    return parse(ModelConfig, content, source="test")


def test_weights_follow_from_the_seed_alone():
    first, again, other = (build_model(config(), seed=seed).network for seed in (3, 3, 4))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_model(config(), seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_knows_its_parts():
    model = build_model(config(formulation={"name": "flow"}))
    assert model.shape == (1, 8, 8)
    assert model.classes == 10
    assert model.formulation.name == "flow"
    assert model.device == torch.device("cpu")
    clean = model.denoiser(torch.zeros(2, 1, 8, 8), torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert clean.shape == (2, 1, 8, 8)


def test_another_precision_is_the_networks_alone():
    model = build_model(config()).to("cpu", dtype=torch.float64)
    assert next(model.network.parameters()).dtype == torch.float64
    x = torch.zeros(1, 1, 8, 8)
    assert model.denoiser(x, torch.tensor(1.0)).dtype == torch.float32


def test_names_must_be_as_many_as_classes():
    with pytest.raises(ConfigError, match=r"has 2 names, but model\.network\.classes is 10"):
        config(class_names=("a", "b"))


def test_network_and_formulation_must_agree_on_the_variance():
    with pytest.raises(ConfigError, match=r"learned_variance is False, but .* is True"):
        config(formulation={"name": "ddpm"})
    with pytest.raises(ConfigError, match=r"learned_variance is True, but .* is False"):
        config(network={"learned_variance": True})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": {"name": "unet"}}, "'unet' is unknown; did you mean 'uvit'"),
        ({"network": {}}, "needs a 'name' that says which kind it is"),
        ({"network": NETWORK, "formulation": {"name": "edn"}}, "did you mean 'edm'"),
        ({"network": NETWORK, "codec": {"name": "vae"}}, "vae"),
        ({"network": {**NETWORK, "width": 3}}, "unknown setting 'network.width'; did you mean"),
        ({"network": {**NETWORK, "heads": 0}}, "heads"),
        ({"network": {**NETWORK, "window": 3}}, "window 3 does not divide"),
        ({}, "setting 'network' is missing"),
    ],
)
def test_mistakes_are_one_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        parse(ModelConfig, settings, source="test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"name": "latent-diffit", "size": 8, "channels": 4, "depth": 2, "width": 16, "heads": 2},
        {"name": "dit", "size": 8, "channels": 4, "depth": 2, "width": 16, "heads": 2},
    ],
)
def test_matrices_kept_in_the_precision_of_autocast_change_nothing(network):
    network = {**(network or NETWORK), "classes": 10}
    settings = parse(ModelConfig, {"network": network}, source="test")
    full = build_model(settings)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        for name, tensor in full.network.state_dict().items()
    }
    low = empty_model(settings)
    fill(full, tensors.items())
    fill(low, tensors.items(), matrices=torch.bfloat16)
    kept = {name for name, p in low.network.named_parameters() if p.dtype == torch.bfloat16}
    assert kept == matrices_of(low.network)
    assert sum(p.numel() for p in low.network.parameters() if p.dtype == torch.bfloat16) > 0
    x = torch.randn(2, *full.shape, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([1, 10])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            full.denoiser(x, torch.tensor(2.0), label), low.denoiser(x, torch.tensor(2.0), label)
        )
