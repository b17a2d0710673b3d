"""Which layers are quantised, and what that changes."""

from pathlib import Path

import pytest
import torch
from test_probe import _source, probe

from diffit.deploy import calibrate, footprint
from diffit.deploy.calibrate import grams, parts, round_layers
from diffit.deploy.footprint import baseline, bits_a_weight, bytes_of, pace, peak_memory
from diffit.deploy.probe import answers, gaps, overall
from diffit.deploy.quantize import (
    candidates,
    check_answers,
    check_quantisable,
    choose,
    config_of,
    exchanged,
    packed_as_trained,
)
from diffit.deploy.sensitivity import keep_dense, layer_errors, level_errors
from diffit.errors import CheckpointError, UsageError
from diffit.hub import Card, export
from diffit.model import ModelConfig, build_model
from diffit.networks import NETWORKS
from diffit.nn.packed import PackedTernary, TernaryPackedConfig
from diffit.nn.quantized import Int4Config, Int8Config, Int8Linear
from diffit.nn.swap import linears_in
from diffit.nn.ternary import TernaryConfig

SMALL = {
    "diffit": {"widths": (16, 32), "blocks": (1, 1), "time_width": 16},
    "latent-diffit": {"width": 32, "depth": 2, "heads": 4},
    "dit": {"width": 32, "depth": 2, "heads": 4},
    "uvit": {"width": 32, "depth": 3, "heads": 4},
    "mdt": {"width": 32, "depth": 3, "decoder": 1, "heads": 4},
    "dimr": {"widths": (32, 16), "depths": (3, 3), "heads": 4},
    "large-dit": {"width": 32, "depth": 2, "heads": 4},
}


def model(name="dit", **settings):
    """A model none of whose weights is zero, frozen as `load` gives it."""
    network = NETWORKS[name][0](size=8, channels=1, classes=10, **SMALL[name])
    made = build_model(ModelConfig(network=network, **settings))
    with torch.no_grad():
        for number, weight in enumerate(made.network.parameters()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=_source(number)))
    made.network.requires_grad_(False)
    return made


def alone(made, found, name, layer):
    """The error that one layer causes, measured."""
    exact = list(answers(made, found))
    with exchanged(made.network, {name: layer}):
        return overall(list(gaps(made, found, exact)))


@pytest.mark.parametrize("name", SMALL)
def test_errors_of_layers_alone_are_found_without_trying_each(name):
    made = model(name)
    found = probe(made, images=16, levels=2)
    layers = linears_in(made.network)
    rounded = round_layers(made, layers, Int8Config(), None)
    errors = layer_errors(made, found, layers, rounded)
    for key in layers:
        # Of 32 draws of random signs: the estimate is good to a quarter or so.
        assert errors[key] ** 0.5 == pytest.approx(alone(made, found, key, rounded[key]), rel=0.45)


def test_looking_for_errors_leaves_the_model_as_it_was():
    made = model()
    found, layers = probe(made), linears_in(made.network)
    before = [said.raw for said in answers(made, found)]
    level_errors(made, found, 0, layers, round_layers(made, layers, Int8Config(), None))
    assert all(torch.equal(a, b.raw) for a, b in zip(before, answers(made, found), strict=True))
    assert not any(p.requires_grad for p in made.network.parameters())
    assert linears_in(made.network) == layers


def test_errors_are_noted_so_that_a_killed_command_goes_on(tmp_path, monkeypatch):
    made = model()
    found, layers = probe(made), linears_in(made.network)
    rounded = round_layers(made, layers, Int8Config(), None)
    notes = tmp_path / "notes.json"
    given = {"notes": notes, "key": "a"}

    def killed(numbers):
        yield from list(numbers)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layer_errors(made, found, layers, rounded, follow=killed, **given)
    whole = layer_errors(made, found, layers, rounded)
    seen = []
    monkeypatch.setattr(
        "diffit.deploy.sensitivity.level_errors",
        lambda m, p, level, *rest: seen.append(level) or level_errors(m, p, level, *rest),
    )
    assert layer_errors(made, found, layers, rounded, **given) == pytest.approx(whole)
    assert seen == [2]
    layer_errors(made, found, layers, rounded, notes=notes, key="of another model")
    assert seen == [2, 0, 1, 2]
    notes.write_text("{")
    layer_errors(made, found, layers, rounded, **given)
    assert seen == [2, 0, 1, 2, 0, 1, 2]


def test_those_that_cost_most_for_their_size_stay_dense():
    errors, weights = {"a": 4.0, "b": 3.0, "c": 1.0}, {"a": 400, "b": 100, "c": 100}
    assert keep_dense(errors, weights, budget=8.0) == []
    assert keep_dense(errors, weights, budget=5.0) == ["b"]
    assert keep_dense(errors, weights, budget=4.9) == ["b", "a"]
    assert keep_dense(errors, weights, budget=0.5) == ["b", "a", "c"]


@pytest.mark.parametrize("config", [Int8Config(), Int4Config(), TernaryPackedConfig()])
def test_calibrated_layers_change_less_on_other_images(config):
    made = model()
    layers = linears_in(made.network)
    found = probe(made, images=32, levels=3)
    exact = list(answers(made, found))

    def gap(rounded):
        with exchanged(made.network, rounded):
            return overall(list(gaps(made, found, exact)))

    seen = probe(made, images=48, levels=3, seed=1, offset=1 / 3)
    calibrated = round_layers(made, layers, config, seen)
    assert gap(calibrated) < 0.8 * gap(round_layers(made, layers, config, None))


def test_layers_are_calibrated_in_parts_that_fit_into_memory(monkeypatch):
    made = model()
    layers, seen = linears_in(made.network), probe(made, images=32)
    whole = round_layers(made, layers, Int8Config(), seen)
    monkeypatch.setattr(calibrate, "GRAM_BYTES", 2 * 4 * 32**2)
    many = list(parts(layers.values()))
    assert [layer for part in many for layer in part] == list(layers.values())
    assert (
        max(sum(4 * layer.in_features**2 for layer in part) for part in many[:2]) <= 2 * 4 * 32**2
    )
    ticks = []
    split = round_layers(made, layers, Int8Config(), seen, follow=lambda n: ticks.extend(n) or n)
    assert len(ticks) == len(many) * len(seen)
    for name in layers:
        assert torch.equal(whole[name].codes, split[name].codes)


def test_what_saw_too_little_is_not_calibrated():
    made = model()
    layers = linears_in(made.network)
    found = grams(made, probe(made, images=4, levels=2), layers.values())
    names = {name for name, layer in layers.items() if layer in found}
    # 8 rows of a condition of 32 numbers say little; 128 tokens say enough.
    assert names == {name for name in layers if not name.endswith("modulation")} - {
        name for name in layers if layers[name].in_features > 64
    }


def test_layers_stay_dense_until_the_error_is_small_enough():
    made = model()
    layers = linears_in(made.network)
    found = probe(made, images=8)
    rounded = round_layers(made, layers, Int4Config(), None)
    errors = layer_errors(made, found, layers, rounded)
    every = choose(made, rounded, found, kind="int4", errors=errors)
    assert {row.kind for row in every.layers} == {"int4"}
    some = choose(made, rounded, found, kind="int4", errors=errors, target=0.6 * every.error)
    assert some.error <= 0.6 * every.error
    dense = {row.name for row in some.layers if row.kind == "dense"}
    assert 0 < len(dense) < len(layers)
    assert some.chosen.keys() == layers.keys() - dense
    worth = {name: errors[name] / layers[name].weight.numel() for name in layers}
    assert min(worth[name] for name in dense) > max(worth[name] for name in some.chosen)
    with pytest.raises(UsageError, match="no choice of layers keeps the error within 1e-07"):
        choose(made, rounded, found, kind="int4", errors=errors, target=1e-7)
    assert linears_in(made.network) == layers


def test_the_configuration_rebuilds_the_choice():
    made = model()
    layers = linears_in(made.network)
    config = Int8Config(skip=("*.modulation",))
    left = candidates(made, config)
    assert left.keys() == {name for name in layers if not name.endswith("modulation")}
    rounded = round_layers(made, left, config, None)
    errors = dict.fromkeys(left, 1e-9) | {"column.0.attention.qkv": 1.0}
    choice = choose(made, rounded, probe(made), kind="int8", errors=errors, target=1e-2)
    found = config_of(config, choice)
    kept = {row.name for row in choice.layers if row.kind == "dense"}
    assert kept == {name for name in layers if name not in choice.chosen}
    built = build_model(made.config.model_copy(update={"linear": found})).network
    integer = {name for name, layer in built.named_modules() if isinstance(layer, Int8Linear)}
    assert integer == set(choice.chosen)


def test_packing_what_was_trained_ternary_changes_nothing():
    trained = TernaryConfig(granularity="row", skip=("column.0.*",))
    made = model(linear=trained)
    config = packed_as_trained(trained, TernaryPackedConfig(storage="base-3"))
    assert (config.granularity, config.skip, config.storage) == ("row", ("column.0.*",), "base-3")
    layers = candidates(made, config)
    assert all(name.startswith("column.1.") for name in layers)
    choice = choose(made, round_layers(made, layers, config, None), probe(made), kind="x")
    assert choice.error < 1e-6
    assert all(isinstance(layer, PackedTernary) for layer in choice.chosen.values())


@pytest.mark.parametrize(
    ("linear", "config", "sentence"),
    [
        (Int8Config(), Int4Config(), "the model has int8 layers already; quantise the model that"),
        (TernaryPackedConfig(), TernaryPackedConfig(), "has ternary-packed layers already"),
        (TernaryConfig(), Int8Config(), "was trained with ternary layers; --to ternary-packed"),
    ],
)
def test_what_cannot_be_quantised_is_refused(linear, config, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        check_quantisable(model(linear=linear), config)


def test_weights_that_are_not_finite_are_refused():
    made = model()
    next(made.network.parameters())[0] = torch.nan
    with pytest.raises(CheckpointError, match="the model has weights that are not finite"):
        check_quantisable(made, Int8Config())


def test_patterns_must_name_layers():
    with pytest.raises(UsageError, match=r"--skip \*\.modulatoin is the name of no linear layer"):
        candidates(model(), Int8Config(skip=("*.modulatoin",)))
    with pytest.raises(UsageError, match="no linear layer is left"):
        candidates(model(), Int8Config(skip=("*",)))


def test_groups_must_divide_the_inputs_of_layers():
    config = TernaryPackedConfig(granularity="group", group=24)
    with pytest.raises(UsageError, match=r"--group 24 does not divide the 32 inputs of column\.0"):
        candidates(model(), config)


def test_a_model_trained_ternary_must_have_ternary_layers():
    made = model(linear=TernaryConfig(skip=("*",)))
    with pytest.raises(UsageError, match=r"no ternary layer to be packed: model\.linear\.skip"):
        candidates(made, TernaryPackedConfig())


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [(0.0, "nothing but 0 at sigma"), (1e38, "numbers that are not finite at sigma")],
)
def test_a_network_that_answers_nothing_of_use_is_refused(factor, sentence):
    made = model()
    for weight in made.network.parameters():
        weight.mul_(factor)
    with pytest.raises(CheckpointError, match=sentence):
        check_answers(made, probe(made))


def test_bits_of_a_weight():
    made = model()
    layers = linears_in(made.network)
    assert bits_a_weight(made.network, {}) == 32
    codes = round_layers(made, layers, Int4Config(), None)
    assert bits_a_weight(made.network, codes) == 4.5
    half = {name: codes[name] for name in list(codes)[:1]}
    assert 4.5 < bits_a_weight(made.network, half) < 32
    trits = round_layers(made, layers, TernaryPackedConfig(), None)
    assert bits_a_weight(made.network, trits) == pytest.approx(2, abs=0.1)
    tight = round_layers(made, layers, TernaryPackedConfig(storage="base-3"), None)
    assert bits_a_weight(made.network, tight) == pytest.approx(1.6, abs=0.1)


def test_the_baseline_is_dense():
    made = model(linear=TernaryConfig())
    other = baseline(made, torch.bfloat16)
    masters = dict(made.network.named_parameters())
    for name, weight in other.network.named_parameters():
        assert torch.equal(weight, masters[name].bfloat16())
    assert bytes_of(other.network) < 0.52 * bytes_of(made.network)


def test_pace_is_images_a_second():
    made = model()
    found = pace({"one": made, "two": made}, probe(made)[0])
    assert found.keys() == {"one", "two"}
    assert all(1 < speed < 1e7 for speed in found.values())


def test_memory_is_that_of_a_process_of_its_own(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell the memory of a process")
    network = NETWORKS["dit"][0](size=8, channels=1, width=512, depth=2, heads=8)
    made = build_model(ModelConfig(network=network))
    export(made, tmp_path / "m", card=Card())
    assert (
        bytes_of(made.network) < peak_memory(tmp_path / "m", images=1) < 3 * bytes_of(made.network)
    )


def test_a_process_that_dies_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(footprint.sys, "executable", "/bin/false")
    with pytest.raises(CheckpointError, match="could not be run in a process of its own: it said"):
        peak_memory(tmp_path, images=1)
