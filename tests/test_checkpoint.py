"""Checkpoints become models again; what is damaged or foreign is refused in one sentence."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml

import diffit
from diffit.checkpoint import (
    checkpoint_folder,
    checkpoints,
    load,
    newest,
    prune,
    save_model,
    weights_in,
)
from diffit.errors import CheckpointError
from diffit.model import build_model
from diffit.sealed import read_state
from diffit.training.loop import train
from tiny import tiny_run

PACKAGE = Path(diffit.__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints at 64 and 128 images, the settings all over the place."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    train(tiny_run(), run, quiet=True)
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(path, place=0.6):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def test_a_run_gives_its_newest_checkpoint_and_recommended_weights(run):
    model = load(run)
    assert model.provenance["checkpoint"] == str(checkpoint_folder(run, 128))
    assert model.provenance["weights"] == "ema-0.9"
    assert model.provenance["images"] == 128
    assert model.config.class_names == tuple("0123456789")
    assert model.sampling.sampler == "heun"
    assert not any(p.requires_grad for p in model.network.parameters())


def test_each_set_of_weights_is_the_stored_one(run):
    folder = checkpoint_folder(run, 64)
    for name in weights_in(folder):
        model = load(folder, weights=name)
        file = folder / f"{name}.safetensors"
        state = read_state(folder)["files"][file.name]
        assert model.provenance["blake2b"] == state["blake2b"]
    assert weights_in(folder) == ["ema-0.9", "ema-64", "ema-power-0.05", "ema-power-0.1", "model"]


def test_the_library_loads_by_its_short_name(run):
    assert diffit.load(run).provenance["images"] == 128


def test_loading_can_change_the_precision(run):
    model = load(run, dtype=torch.bfloat16)
    assert next(model.network.parameters()).dtype == torch.bfloat16


def test_a_saved_model_comes_back_bit_for_bit(tmp_path):
    config = tiny_run()
    model = build_model(config.model, seed=9)
    save_model(tmp_path / "x", config, {"model": model.network.state_dict()}, {})
    again = load(tmp_path / "x")
    for a, b in zip(model.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_model_without_a_run_around_it_can_be_saved(tmp_path):
    from diffit.config import Settings
    from diffit.model import ModelConfig

    class Exported(Settings):
        model: ModelConfig

    config = tiny_run().model
    model = build_model(config)
    save_model(tmp_path / "x", Exported(model=config), {"model": model.network.state_dict()}, {})
    assert load(tmp_path / "x").config == config


def test_unknown_weights_are_answered_with_those_there_are(run):
    with pytest.raises(CheckpointError, match=r"no weights 'ema'; there are: ema-0\.9, ema-64, "):
        load(run, weights="ema")


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(run):
    flip(checkpoint_folder(run, 128) / "ema-0.9.safetensors")
    with pytest.warns(UserWarning, match=r"000000000128 is damaged: the checksum of ema-0\.9"):
        model = load(run)
    assert model.provenance["images"] == 64


@pytest.mark.parametrize("name", ["model", "ema-0.9", "optimizer"])
def test_the_newest_intact_checkpoint_is_found(run, name):
    flip(checkpoint_folder(run, 128) / f"{name}.safetensors")
    found = newest(run)
    assert found.folder == checkpoint_folder(run, 64)
    assert list(found.damaged) == [checkpoint_folder(run, 128)]


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(run):
    folder = checkpoint_folder(run, 128)
    flip(folder / "model.safetensors")
    load(folder)  # the other weights are intact
    with pytest.raises(CheckpointError, match="is damaged"):
        load(folder, weights="model")


def test_if_nothing_is_intact_that_is_said(run):
    for folder in checkpoints(run):
        (folder / "state.json").write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match=r"no checkpoint of .* is intact"):
            load(run)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.write_text("x"), "is a file, not a folder"),
        (lambda p: p.mkdir(), "is no checkpoint, and no run that has written one"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, make, sentence):
    make(tmp_path / "x")
    with pytest.raises(CheckpointError, match=sentence):
        load(tmp_path / "x")


def reseal(folder, **settings):
    """Write the configuration anew, as another hand would, with the checksums in order."""
    from diffit import sealed

    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["model"]["network"].update(settings)
    path.write_text(yaml.safe_dump(content))
    state = json.loads((folder / "state.json").read_text())
    state["files"]["config.yaml"] = {
        "bytes": path.stat().st_size, "blake2b": sealed.checksum(path),
    }  # fmt: skip
    state["blake2b"] = sealed._digest(state)
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"blocks": [1, 2]}, "lacks tensor 'decoder|lacks tensor 'encoder"),
        ({"augment": False}, "has the unknown tensor 'augment.weight'"),
        ({"time_width": 16}, r"has shape \(\d+.*, but its configuration wants"),
        ({"heads": 3}, "must be multiples of heads 3"),
        ({"nonsense": 3}, "unknown setting 'network.nonsense'"),
    ],
)
def test_weights_of_another_network_are_refused(run, settings, sentence):
    folder = checkpoint_folder(run, 128)
    reseal(folder, **settings)
    with pytest.raises(CheckpointError, match=sentence) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_old_checkpoints_are_removed_except_at_the_kept_multiples(tmp_path):
    for images in (100, 200, 250, 300, 400):
        checkpoint_folder(tmp_path, images).mkdir(parents=True)
    prune(tmp_path, keep_last=1, keep_every=200)
    assert [int(p.name) for p in checkpoints(tmp_path)] == [200, 400]


def test_a_power_average_of_another_length_is_rebuilt(tmp_path):
    settings = {"images": 512, "checkpoint_every": 256, "micro_batch": None, "clip": 1.0}
    settings |= {"snapshot_every": 0}
    stored = {"power": [0.05, 0.1], "power_every": 16}
    train(tiny_run(**settings, ema=stored), tmp_path / "two", quiet=True)
    train(tiny_run(**settings, ema={"power": [0.15]}), tmp_path / "one", quiet=True)
    rebuilt = load(tmp_path / "two", weights="ema-power-0.15").network.state_dict()
    direct = load(tmp_path / "one").network.state_dict()
    near = load(tmp_path / "two", weights="ema-power-0.1").network.state_dict()

    def distance(a, b):
        return sum((a[key] - b[key]).pow(2).sum() for key in a) ** 0.5

    assert distance(rebuilt, direct) < 0.03 * distance(near, direct)


def test_a_length_that_cannot_be_is_refused(run):
    with pytest.raises(CheckpointError, match=r"ema-power-0\.7: length .* must lie between"):
        load(run, weights="ema-power-0.7")


def test_no_checkpoint_is_read_by_code_that_could_run_it():
    files = [PACKAGE / "checkpoint.py", PACKAGE / "sealed.py", *PACKAGE.glob("training/*.py")]
    for path in files:
        text = path.read_text()
        for word in ("pickle", "torch.load(", "yaml.load("):
            assert word not in text, path
