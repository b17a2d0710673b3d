"""Fine-tuning: every tensor is taken over, fitted, or listed."""

import json

import pytest
import torch
import torch.nn.functional as F

from diffit.checkpoint import load, save_model
from diffit.config import Settings
from diffit.errors import CheckpointError
from diffit.model import ModelConfig, build_model
from diffit.nn.attention import RelativeBias
from diffit.nn.packed import TernaryPackedConfig
from diffit.nn.quantized import Int4Config, Int8Config
from diffit.nn.ternary import TernaryConfig, TernaryLinear, ternarise
from diffit.training.loop import train
from diffit.training.transfer import carry_over, describe
from tiny import tiny_run

NAMES = tuple("0123456789")


class Exported(Settings):
    model: ModelConfig


def config(names=(), **network):
    model = tiny_run(network=network).model
    return ModelConfig(network=model.network, class_names=names)


def stored(tmp_path, names=(), **network):
    """A checkpoint of random weights; the model it holds and its folder."""
    torch.manual_seed(0)
    model = build_model(config(names, **network), seed=1)
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(torch.randn_like(p))
    save_model(
        tmp_path / "x", Exported(model=model.config), {"model": model.network.state_dict()}, {}
    )
    return model, tmp_path / "x"


def square(bias):
    """(heads, rows, columns) of a position bias."""
    return bias.table.detach().T.unflatten(1, (2 * bias.grid[0] - 1, -1))


def table(model):
    return model.network.label.table.weight


def test_the_same_network_is_taken_over_as_a_whole(tmp_path):
    source, path = stored(tmp_path)
    model = build_model(config(), seed=2)
    report = carry_over(model, path)
    assert not report.changed
    assert not report.fresh
    assert not report.unused
    for a, b in zip(source.network.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_classes_of_the_same_name_keep_their_rows(tmp_path):
    source, path = stored(tmp_path, NAMES)
    model = build_model(config(("7", "cat", "2"), classes=3), seed=2)
    fresh = table(model).detach().clone()
    report = carry_over(model, path)
    assert torch.equal(table(model)[0], table(source)[7])
    assert torch.equal(table(model)[1], fresh[1])
    assert torch.equal(table(model)[2], table(source)[2])
    assert torch.equal(table(model)[3], table(source)[10])  # no class
    assert report.changed["label.table.weight"] == "2 of 3 classes"


@pytest.mark.parametrize("classes", [4, 15])
def test_classes_without_names_keep_their_numbers(tmp_path, classes):
    source, path = stored(tmp_path)
    model = build_model(config(classes=classes), seed=2)
    carry_over(model, path)
    kept = min(classes, 10)
    assert torch.equal(table(model)[:kept], table(source)[:kept])
    assert torch.equal(table(model)[-1], table(source)[-1])


def test_classes_in_another_order_follow_their_names(tmp_path):
    source, path = stored(tmp_path, NAMES)
    model = build_model(config(NAMES[::-1]), seed=2)
    carry_over(model, path)
    assert torch.equal(table(model)[:10], table(source)[:10].flip(0))


def test_a_network_without_classes_leaves_the_table(tmp_path):
    _, path = stored(tmp_path)
    report = carry_over(build_model(config(classes=0)), path)
    assert report.unused == ["label.table.weight"]


def test_another_image_size_takes_everything_over(tmp_path):
    _, path = stored(tmp_path)
    report = carry_over(build_model(config(size=16)), path)
    assert not report.fresh
    assert not report.changed


def test_a_larger_window_interpolates_the_position_bias(tmp_path):
    source, path = stored(tmp_path, size=16)
    model = build_model(config(size=16, window=8), seed=2)
    report = carry_over(model, path)
    assert not report.fresh
    for key in report.changed:
        before = source.network.get_submodule(key.removesuffix(".table"))
        after = model.network.get_submodule(key.removesuffix(".table"))
        assert isinstance(after, RelativeBias)
        old, new = square(before), square(after)
        # The middle (no displacement) and the far ends stay where they are.
        a, b = old.shape[1] // 2, new.shape[1] // 2
        assert torch.allclose(new[:, b, b], old[:, a, a], atol=1e-5)
        assert torch.allclose(new[:, ::b, ::b], old[:, ::a, ::a], atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_grey_and_colour_give_the_same_answer_to_a_grey_picture(tmp_path, before, after):
    source, path = stored(tmp_path, channels=before)
    model = build_model(config(channels=after), seed=2)
    report = carry_over(model, path)
    assert sorted(report.changed) == ["head.bias", "head.weight", "tokenizer.weight"]
    x, time = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.5])
    ours = model.network(x.expand(-1, after, -1, -1), time)
    theirs = source.network(x.expand(-1, before, -1, -1), time)
    assert torch.allclose(ours.mean(1), theirs.mean(1), rtol=1e-4, atol=1e-3)


def test_what_does_not_fit_is_listed_and_left_as_initialised(tmp_path):
    _, path = stored(tmp_path)
    model = build_model(config(widths=(16, 32), blocks=(1, 2)), seed=2)
    before = {key: t.clone() for key, t in model.network.state_dict().items()}
    report = carry_over(model, path)
    assert report.fresh["entry.weight"] == (
        "shape [16, 16, 3, 3] in the checkpoint, [32, 32, 3, 3] here"
    )
    assert "not in the checkpoint" in report.fresh.values()
    for key in report.fresh:
        assert torch.equal(model.network.state_dict()[key], before[key])
    every = [*report.carried, *report.changed, *report.fresh]
    assert sorted(every) == sorted(model.network.state_dict())
    assert any("entry.weight: starts afresh" in line for line in describe(report))


def test_a_run_starts_from_a_checkpoint_and_says_what_it_took(tmp_path, capsys):
    train(tiny_run(images=64), tmp_path / "first", quiet=True)
    fine = tiny_run(
        images=16, lr=1e-12, init_from=str(tmp_path / "first"), network={"classes": 0},
        data={"labels": False},
    )  # fmt: skip
    train(fine, tmp_path / "second")
    assert "label.table.weight: of the checkpoint alone, not used" in capsys.readouterr().out
    report = json.loads((tmp_path / "second" / "carried.json").read_text())
    assert report["unused"] == ["label.table.weight"]
    ours = load(tmp_path / "second").network.state_dict()
    theirs = load(tmp_path / "first").network.state_dict()
    for key in report["carried"]:
        assert torch.allclose(ours[key], theirs[key], atol=1e-6)


def test_a_source_that_is_none_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        train(tiny_run(init_from="nowhere"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [Int8Config(), Int4Config(), TernaryPackedConfig()])
def test_quantised_weights_are_no_start(tmp_path, kind):
    made = build_model(config().model_copy(update={"linear": kind}))
    save_model(
        tmp_path / "x", Exported(model=made.config), {"model": made.network.state_dict()}, {}
    )
    with pytest.raises(CheckpointError, match=f"has {kind.name} layers, which cannot be trained"):
        carry_over(build_model(config()), tmp_path / "x")


def test_resized_tables_are_the_bicubic_ones():
    from diffit.training.transfer import _resize_bias

    old = torch.randn(49, 2)
    new = _resize_bias(old, (4, 4), (8, 8))
    image = F.interpolate(
        old.T.reshape(1, 2, 7, 7), size=(15, 15), mode="bicubic", align_corners=True
    )
    assert torch.allclose(new, image[0].reshape(2, -1).T)


def test_dense_weights_become_the_masters_of_ternary_layers(tmp_path):
    source, path = stored(tmp_path)
    ternary = config().model_copy(update={"linear": TernaryConfig(initial_scale="official")})
    model = build_model(ternary, seed=2)
    report = carry_over(model, path)
    layers = {n: m for n, m in model.network.named_modules() if isinstance(m, TernaryLinear)}
    assert len(layers) > 8
    assert report.changed == dict.fromkeys((f"{n}.scale" for n in layers), "fitted to the weights")
    assert describe(report)[1:] == [
        f"  scales of {len(layers)} ternary layers: fitted to the weights"
    ]
    assert not report.fresh
    for name, layer in layers.items():
        dense = source.network.get_submodule(name)
        assert torch.equal(layer.weight, dense.weight)
        assert torch.equal(layer.scale, ternarise(dense.weight).scale)


def test_scales_of_another_granularity_are_fitted_again(tmp_path):
    _, path = stored(tmp_path)
    coarse = config().model_copy(update={"linear": TernaryConfig()})
    fine = config().model_copy(update={"linear": TernaryConfig(granularity="row")})
    model = build_model(coarse)
    carry_over(model, path)
    save_model(tmp_path / "y", Exported(model=coarse), {"model": model.network.state_dict()}, {})
    other = build_model(fine)
    report = carry_over(other, tmp_path / "y")
    assert not report.fresh
    for layer in other.network.modules():
        if isinstance(layer, TernaryLinear):
            assert torch.equal(layer.scale, ternarise(layer.weight, granularity="row").scale)


def test_ternary_scales_are_taken_over(tmp_path):
    ternary = config().model_copy(update={"linear": TernaryConfig()})
    model = build_model(ternary)
    with torch.no_grad():
        for layer in model.network.modules():
            if isinstance(layer, TernaryLinear):
                layer.scale.fill_(-3)
    save_model(tmp_path / "x", Exported(model=ternary), {"model": model.network.state_dict()}, {})
    other = build_model(ternary, seed=2)
    assert not carry_over(other, tmp_path / "x").changed
    assert all(
        layer.scale == -3 for layer in other.network.modules() if isinstance(layer, TernaryLinear)
    )
