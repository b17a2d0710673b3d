"""Training with ternary layers: it learns, resumes, is loaded again, and refuses what cannot be."""

import pytest
import torch

from diffit.checkpoint import checkpoint_folder, load
from diffit.config import parse, read_yaml
from diffit.errors import ConfigError
from diffit.nn.linears import DenseConfig
from diffit.nn.ternary import TernaryConfig, TernaryLinear, ternarise
from diffit.sealed import read_state, read_tensors
from diffit.training.journal import read_metrics
from diffit.training.loop import train
from diffit.training.settings import RunConfig
from tiny import tiny_run


def ternary_run(linear=None, **train):
    run = tiny_run(**train)
    linear = TernaryConfig(**(linear or {}))
    return run.model_copy(update={"model": run.model.model_copy(update={"linear": linear})})


def sums(run, images):
    files = read_state(checkpoint_folder(run, images))["files"]
    return {name: note["blake2b"] for name, note in files.items() if name != "config.yaml"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "straight"
    train(ternary_run(images=96), run, quiet=True)
    return run


def test_the_loss_falls(tmp_path):
    config = ternary_run(
        {"granularity": "group", "group": 8},
        images=640, batch=32, micro_batch=None, lr=1e-2, log_every=160, ema={},
        network={"dropout": 0.0}, data={"augment": 0.0},
    )  # fmt: skip
    train(config, tmp_path / "run", quiet=True)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.85 * losses[0]


def test_a_run_resumes_bit_for_bit(straight, tmp_path):
    train(ternary_run(images=48), tmp_path / "run", quiet=True)
    train(ternary_run(images=96), tmp_path / "run", resume=True, quiet=True)
    assert sums(tmp_path / "run", 96) == sums(straight, 96)


def test_a_checkpoint_says_how_to_build_its_network(straight):
    settings = parse(RunConfig, read_yaml(straight / "config.yaml"), source="saved")
    assert settings.model.linear == TernaryConfig()
    model = load(straight)
    assert model.config.linear == TernaryConfig()
    tensors = read_tensors(checkpoint_folder(straight, 96), "ema-0.9")
    layers = {n: m for n, m in model.network.named_modules() if isinstance(m, TernaryLinear)}
    assert len(layers) > 8
    for name, layer in layers.items():
        assert torch.equal(layer.weight, tensors[f"{name}.weight"])
        assert torch.equal(layer.scale, tensors[f"{name}.scale"])


def test_averages_are_of_the_masters(straight):
    """Their codes are those of the averaged weights, not an average of codes."""
    first, average = (load(straight, weights=name) for name in ("model", "ema-0.9"))
    name, layer = next(
        (n, m) for n, m in average.network.named_modules() if isinstance(m, TernaryLinear)
    )
    codes = layer.ternary().codes
    assert set(codes.unique().tolist()) <= {-1, 0, 1}
    assert torch.equal(codes, ternarise(layer.weight).codes)
    assert not torch.equal(layer.weight, first.network.get_submodule(name).weight)


def test_masters_and_scales_both_move(straight):
    fresh = load(straight, weights="model").network
    untrained = dict(parse_and_build(straight).named_parameters())
    for name, layer in fresh.named_modules():
        if isinstance(layer, TernaryLinear):
            assert not torch.equal(layer.weight, untrained[f"{name}.weight"]), name
            assert not torch.equal(layer.scale, untrained[f"{name}.scale"]), name


def parse_and_build(run):
    from diffit.model import build_model

    settings = parse(RunConfig, read_yaml(run / "config.yaml"), source="saved")
    return build_model(settings.model, seed=settings.train.seed).network


def test_the_kind_of_layers_cannot_change_when_a_run_goes_on(straight):
    from diffit.training.settings import changeable, changes

    settings = parse(RunConfig, read_yaml(straight / "config.yaml"), source="saved")
    dense = settings.model_copy(
        update={"model": settings.model.model_copy(update={"linear": DenseConfig()})}
    )
    assert not any(changeable(name) for name in changes(settings, dense))


@pytest.mark.parametrize(
    ("linear", "sentence"),
    [
        ({"skip": ["levels.9.*"]}, "model.linear.skip 'levels.9.\\*' is the name of no linear"),
        ({"granularity": "group", "group": 13}, "model.linear.group 13 does not divide the"),
    ],
)
def test_what_fits_no_layer_is_refused_before_a_folder_is_made(tmp_path, linear, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(ternary_run(linear), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_packed_layers_are_not_trained(tmp_path):
    run = tiny_run()
    settings = run.model_dump() | {"model": run.model.model_dump() | {"linear": "ternary-packed"}}
    with pytest.raises(ConfigError, match="'ternary-packed' is for models that are trained alr"):
        train(RunConfig.model_validate(settings), tmp_path / "run", quiet=True)
