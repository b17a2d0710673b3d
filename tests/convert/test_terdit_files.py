"""Folders of TerDiT become models that every command loads, and files again."""

import argparse
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from convert.files import randomised, recorded, write, write_network
from convert.test_terdit import FORMS, released
from diffit.checkpoint import load
from diffit.cli import main
from diffit.convert import detect, from_file, large_dit, terdit, to_reference
from diffit.convert.families import FAMILIES
from diffit.errors import CheckpointError
from diffit.networks import build_network
from diffit.networks.large_dit import LargeDiTConfig
from diffit.nn.packed import PackedTernary
from diffit.training.presets import presets, read_config

PACKED, MASTERS = "consolidated_ema_ternary.00-of-01.pth", "consolidated_ema.00-of-01.pth"
FILE = {"packed": PACKED, "masters": MASTERS}
WQ = "layers.0.attention.wq"


def folder_of(path, form="packed", change=lambda state: None, **args):
    """A folder as the release has it."""
    path.mkdir()
    _, state, _ = released(form)
    change(state)
    write(path / FILE[form], state)
    facts = {"model": "DiT_Llama_600M_patch2", "image_size": 64, "num_classes": 10, "qk_norm": True}
    torch.save(argparse.Namespace(**facts | args), path / "model_args.pth")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_becomes_a_model_with_a_certificate(tmp_path, form):
    converted = from_file(folder_of(tmp_path / "600M", form), heads=4)
    certificate = converted.certificate
    assert certificate.family == "terdit"
    assert certificate.weights == FILE[form].partition(".")[0]
    assert certificate.mapped == len(released(form)[1])
    assert certificate.comparison.float64_relative < 1e-12
    assert certificate.comparison.float32_relative < 1e-5
    assert converted.config.linear.name == {"packed": "ternary-packed", "masters": "ternary"}[form]
    assert converted.config.network.shape == (4, 8, 8)
    assert converted.sampling.guidance_channels == 3
    assert converted.licence.name == "mit"


@pytest.mark.parametrize("form", FORMS)
def test_the_command_gives_the_tensors_back_byte_for_byte(tmp_path, capsys, form):
    source, ours, back = folder_of(tmp_path / "600M", form), tmp_path / "ours", tmp_path / "back"
    assert main(["convert", str(source), "--heads", "4", "--out", str(ours)]) == 0
    assert "terdit, Lucky-Lance/TerDiT (June 2024)" in capsys.readouterr().out
    assert main(["convert", str(ours), "--to", "reference", "--out", str(back)]) == 0
    tensors, state = load_file(back / "model.safetensors"), released(form)[1]
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    meta = recorded("terdit")[2]
    assert json.loads((back / "config.json").read_text())["arguments"]["dim"] == 64
    assert meta["constructor"]["dim"] == 64


def test_a_converted_model_is_as_small_as_its_file_and_draws(tmp_path):
    source, ours = folder_of(tmp_path / "600M"), tmp_path / "ours"
    assert main(["convert", str(source), "--heads", "4", "--out", str(ours), "--no-certify"]) == 0
    size = (ours / "model.safetensors").stat().st_size
    assert size < 1.05 * (source / PACKED).stat().st_size
    model = load(ours)
    tensors = released("packed")[0]
    with torch.no_grad():
        out = model.network(*(tensors[f"input.{name}"] for name in "xty"))
    torch.testing.assert_close(out, tensors["output"], atol=2e-5, rtol=1e-5)
    assert all(isinstance(block.mlp.up, PackedTernary) for block in model.network.blocks())


def test_the_packed_set_is_taken_unless_another_is_named(tmp_path):
    folder = folder_of(tmp_path / "600M")
    write(folder / MASTERS, released("masters")[1])
    assert from_file(folder, heads=4, certify=False).config.linear.name == "ternary-packed"
    chosen = from_file(folder, heads=4, certify=False, weights="consolidated_ema")
    assert chosen.config.linear.name == "ternary"


def test_one_file_finds_the_arguments_beside_it(tmp_path):
    folder = folder_of(tmp_path / "600M")
    assert from_file(folder / PACKED, heads=4, certify=False).config.network.shape == (4, 8, 8)
    (folder / "model_args.pth").unlink()
    with pytest.raises(CheckpointError, match=r"do not tell the size of images .* --source-size"):
        from_file(folder / PACKED, heads=4, certify=False)
    found = from_file(folder / PACKED, heads=4, source_size=64, certify=False).config.network
    assert found.shape == (4, 8, 8)
    assert found.qk_norm


def test_without_norms_of_queries_and_keys(tmp_path):
    def bare(state):
        for name in [name for name in state if "_norm." in name and ".attention." in name]:
            del state[name]

    folder = folder_of(tmp_path / "a", change=bare, qk_norm=False)
    assert not from_file(folder, heads=4).config.network.qk_norm
    folder = folder_of(tmp_path / "b", qk_norm=False)
    with pytest.raises(CheckpointError, match=r"holds .*k_norm.* which this network does not have"):
        from_file(folder, heads=4)


@pytest.mark.parametrize("name", [n for n in presets() if n.startswith(("terdit-", "large-dit-"))])
def test_files_of_published_sizes_are_recognised_and_used_as_the_presets_say(name):
    config = read_config(name)
    with torch.device("meta"):
        network = build_network(config.model.network)
        family = "terdit" if config.model.network.modulation_norm else "large-dit"
        shapes = {
            FAMILIES[family].names(config.model.network)[key]: tuple(tensor.shape)
            for key, tensor in network.state_dict().items()
            if key != "rotation"
        }
    assert detect(shapes) == family
    module = FAMILIES[family]
    side = config.model.network.shape[1]
    assert module.config(module.infer(shapes, {"input_size": side})) == config.model.network
    assert module.published(config.model.network).formulation == config.model.formulation
    assert module.published(config.model.network).sampling == config.sampling


def test_dense_weights_are_of_family_large_dit(tmp_path):
    config = LargeDiTConfig(
        size=8, width=48, depth=2, heads=4, classes=5, mlp_ratio=3.0, hidden_multiple=1,
        learned_variance=True,
    )  # fmt: skip
    network = randomised(config)
    path = write_network(tmp_path / "dense.safetensors", network)
    converted = from_file(path, heads=4, source_size=64)
    assert converted.certificate.family == "large-dit"
    assert converted.certificate.comparison.float64_relative < 1e-12
    assert converted.config.network.hidden == config.hidden
    assert to_reference(converted.model().network)[0] == "large-dit"


def test_other_sizes_number_more_tokens(tmp_path, capsys):
    source = folder_of(tmp_path / "600M")
    words = ["convert", str(source), "--heads", "4", "--size", "128", "--no-certify", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 2
    assert "take positions plain" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "b"), "--positions", "plain"]) == 0
    larger = load(tmp_path / "b")
    assert larger.shape == (4, 16, 16)
    assert larger.network.rotation.shape == (2, 64, 8)


BAD = [
    (lambda s: s.pop(f"{WQ}.alphas"), f"the checkpoint lacks {WQ}.alphas"),
    (lambda s: s[f"{WQ}.weight"].fill_(0xFF), f"{WQ}.weight has codes of 3"),
    (lambda s: s[f"{WQ}.alphas"].fill_(float("nan")), f"{WQ}.alphas holds values that are not fin"),
    (lambda s: s.update({f"{WQ}.alphas": torch.ones(64)}), f"{WQ}.alphas is 64 in the checkpoint"),
    (lambda s: s.update({f"{WQ}.weight": s[f"{WQ}.weight"][:-1]}), f"{WQ}.weight is 15 x 64 in"),
    (
        lambda s: s.update({f"{WQ}.weight": s[f"{WQ}.weight"].int()}),
        "torch.int32, not packed",
    ),
    (
        lambda s: s.update({"layers.1.attention.wk.weight": torch.ones(16, 64)}),
        "float32, not packed",
    ),
    (lambda s: s.update({"layers.9999.x": torch.ones(1)}), "depth"),
    (
        lambda s: s.update({"x_embedder.weight": torch.ones(64)}),
        "weight is 64, which no",
    ),
    (lambda s: s.pop("y_embedder.embedding_table.weight"), "lacks y_embedder.embedding_table.weig"),
]


@pytest.mark.parametrize(("change", "match"), BAD)
def test_files_that_are_not_right_are_refused(tmp_path, change, match):
    folder = folder_of(tmp_path / "600M", change=change)
    with pytest.raises(CheckpointError, match=match) as caught:
        from_file(folder, heads=4, certify=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", [PACKED, "model_args.pth"])
def test_cut_files_are_refused(tmp_path, name, keep):
    folder = folder_of(tmp_path / "600M")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CheckpointError, match="is damaged, or no file of PyTorch"):
        from_file(folder, heads=4, certify=False)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [PACKED, "model_args.pth"])
def test_nothing_in_a_file_is_run(tmp_path, name):
    folder, made = folder_of(tmp_path / "600M"), tmp_path / "made"
    torch.save({"model": Evil(made)}, folder / name)
    with pytest.raises(CheckpointError, match="could run code and are not loaded"):
        from_file(folder, heads=4, certify=False)
    assert not made.exists()


def test_what_is_no_table_of_arguments_is_refused(tmp_path):
    folder = folder_of(tmp_path / "600M")
    torch.save([1, 2], folder / "model_args.pth")
    with pytest.raises(CheckpointError, match="holds a list, no arguments; remove it"):
        from_file(folder, heads=4, certify=False)


def test_parts_of_a_model_are_refused(tmp_path):
    folder = folder_of(tmp_path / "7B")
    (folder / PACKED).rename(folder / PACKED.replace("00-of-01", "00-of-02"))
    with pytest.raises(CheckpointError, match="is one of 2 parts that were trained on as many dev"):
        from_file(folder, heads=4, certify=False)


def test_heads_must_be_named_where_no_published_size_has_them(tmp_path):
    with pytest.raises(CheckpointError, match=r"no published size has width 64; name .* --heads"):
        from_file(folder_of(tmp_path / "600M"), certify=False)


def test_families_know_their_files_from_each_other():
    names = released("packed")[1]
    assert terdit.recognises(names)
    assert not large_dit.recognises(names)
    dense = [n for n in names if "alphas" not in n and "adaLN_modulation.2" not in n]
    assert large_dit.recognises(dense)
    assert not terdit.recognises(dense)
