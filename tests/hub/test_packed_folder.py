"""Folders of packed models: hostile ones end in one sentence, before anything is computed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffit
from diffit.diffusion.formulation import DDPMConfig
from diffit.errors import CheckpointError
from diffit.fetch import file_sha256
from diffit.hub import Card, write_folder
from diffit.model import ModelConfig, build_model
from diffit.networks.large_dit import LargeDiTConfig
from diffit.nn.packed import TernaryPackedConfig
from diffit.sampling import SamplingConfig

CONFIG = ModelConfig(
    network=LargeDiTConfig(size=8, width=32, depth=2, heads=4, modulation_norm=True),
    formulation=DDPMConfig(learned_variance=False),
    linear=TernaryPackedConfig(),
)
LAYER = "column.1.attention.query"


@pytest.fixture
def folder(tmp_path):
    tensors = build_model(CONFIG, seed=1).network.state_dict()
    shared = {"sampling": SamplingConfig(), "card": Card()}
    write_folder(tmp_path / "packed", config=CONFIG, tensors=tensors, **shared)
    return tmp_path / "packed"


def forge(folder, change):
    """Change the tensors of a folder, whose checksum fits again."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    seal(folder)


def seal(folder):
    """Make the checksum in the folder that of its file."""
    file = folder / "model.safetensors"
    described = json.loads((folder / "config.json").read_text())
    note = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    described["files"] = {file.name: note}
    (folder / "config.json").write_text(json.dumps(described))


def changed(name, make):
    def change(tensors):
        tensors[f"{LAYER}.{name}"] = make(tensors[f"{LAYER}.{name}"])

    return change


FORGED = [
    (changed("codes", lambda t: t | 0b11), f"{LAYER}: codes has codes of 3, which stand for no w"),
    (changed("codes", lambda t: t.float()), f"'{LAYER}.codes' holds float32, which its layer does"),
    (changed("codes", lambda t: t.to(torch.int8)), f"{LAYER}: codes is int8 of shape"),
    (changed("codes", lambda t: t[:1]), rf"tensor '{LAYER}.codes' has shape \(1, 2, 64\)"),
    (changed("scale", lambda t: t * float("nan")), f"{LAYER}: scale has numbers that are not fini"),
    (changed("scale", lambda t: t.int()), f"tensor '{LAYER}.scale' holds int32, which its layer"),
    (changed("scale", lambda t: t.expand(32).clone()), f"'{LAYER}.scale' has shape .* wants "),
    (lambda s: s.pop(f"{LAYER}.scale"), f"lacks tensor '{LAYER}.scale'"),
    (lambda s: s.pop(f"{LAYER}.codes"), f"lacks tensor '{LAYER}.codes'"),
    (lambda s: s.update({f"{LAYER}.weight": torch.ones(32, 32)}), f"unknown tensor '{LAYER}.weig"),
    (lambda s: s.update({"patch.weight": s["patch.weight"].long()}), "'patch.weight' holds int64"),
]


@pytest.mark.parametrize(("change", "message"), FORGED)
def test_what_is_no_ternary_matrix_is_refused(folder, change, message):
    forge(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        diffit.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_cut_files_are_refused_even_if_the_checksum_fits(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    seal(folder)
    with pytest.raises(CheckpointError, match="is damaged"):
        diffit.load(folder)


def test_an_honest_folder_loads(folder):
    forge(folder, lambda tensors: None)
    model = diffit.load(folder)
    expected = build_model(CONFIG, seed=1).network.state_dict()
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
