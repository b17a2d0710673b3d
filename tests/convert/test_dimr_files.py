"""Files of DiMR become models, certified by formulas of their own, and files again."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from conftest import FIXTURES
from convert.files import randomised, write, write_network
from diffit.checkpoint import load
from diffit.cli import main
from diffit.convert import dimr, from_file, from_reference, to_reference
from diffit.errors import CheckpointError
from diffit.networks import DiMRConfig, build_network
from diffit.training.presets import presets, read_config


@pytest.fixture(scope="module")
def recorded():
    with safe_open(FIXTURES / "dimr_tiny.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        args = json.loads(file.metadata()["constructor"])
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return tensors, state, args


@pytest.fixture
def released(recorded, tmp_path):
    return write(tmp_path / "DiMR-tiny.pth", recorded[1])


def test_a_file_becomes_a_model_with_a_certificate(recorded, released):
    _, state, args = recorded
    converted = from_file(released, heads=4)
    assert converted.certificate.family == "dimr"
    assert converted.certificate.comparison.float64_relative < 1e-12
    assert converted.certificate.comparison.float32_relative < 1e-5
    expected = from_reference("dimr", state, args).config
    # A file of five blocks does not tell whether four or five were asked for.
    assert converted.config.network == expected.model_copy(update={"depths": (3, 5)})
    assert converted.licence.name == "other"
    assert "for research alone" in converted.card().licence_note


def test_the_command_gives_the_file_back(recorded, released, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["convert", str(released), "--heads", "4", "--out", str(ours)]) == 0
    assert "dimr, qihao067/DiMR (September 2024)" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="for research alone"):
        assert load(ours).config.formulation.time == "dimr"
    assert main(["convert", str(ours), "--to", "reference", "--out", str(back)]) == 0
    tensors = load_file(back / "model.safetensors")
    assert tensors.keys() == recorded[1].keys()
    for name, tensor in recorded[1].items():
        assert torch.equal(tensors[name], tensor), name
    config = json.loads((back / "config.json").read_text())
    assert config["family"] == "dimr"
    assert config["arguments"]["stage_configs"][1]["kernel_size"] == 7


def test_the_plain_formulas_give_the_recorded_output(recorded):
    tensors, state, args = recorded
    x, time, label = (tensors[f"input.{name}"] for name in ("x", "log_snr", "y"))
    out = dimr.plain_forward(state, args, x.double(), time, label)
    torch.testing.assert_close(out.float(), tensors["output"], atol=2e-5, rtol=1e-5)


def test_three_branches_with_layer_norms_are_read_too(tmp_path):
    network = randomised(
        DiMRConfig(size=8, channels=3, classes=2, widths=(24, 12, 6), depths=(3, 1, 2), heads=2,
                   norm="td-ln", kernel=5)
    )  # fmt: skip
    converted = from_file(write_network(tmp_path / "three.safetensors", network), heads=2)
    assert converted.certificate.comparison.float64_relative < 1e-12
    assert converted.config.network.norm == "td-ln"
    assert converted.config.network.kernel == 5
    assert converted.config.formulation.name == "vp"


@pytest.mark.parametrize("preset", [name for name in presets() if name.startswith("dimr-")])
def test_files_of_published_sizes_are_recognised_and_used_as_the_presets_say(preset):
    config = read_config(preset)
    with torch.device("meta"):
        _, tensors, _ = to_reference(build_network(config.model.network))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert dimr.recognises(shapes)
    found = dimr.config(dimr.infer(shapes, {}))
    real = tuple(depth // 2 * 2 + 1 for depth in config.model.network.depths)
    assert found == config.model.network.model_copy(update={"depths": real})
    assert dimr.published(found).formulation == config.model.formulation
    assert dimr.published(found).sampling == config.sampling


def test_heads_must_be_named_where_no_published_size_has_them(released):
    with pytest.raises(CheckpointError, match=r"no published DiMR has width 32 .*--heads"):
        from_file(released)


@pytest.mark.parametrize(("theirs", "kind"), [("linear.weight", "ADARMSN"), ("scale", "RMSN")])
def test_other_norms_are_refused_by_name(recorded, tmp_path, theirs, kind):
    norm = "stages.0.blocks.0.block1.norm"
    state = {n: t for n, t in recorded[1].items() if not n.startswith(norm)}
    path = write(tmp_path / "a.pth", state | {f"{norm}.{theirs}": torch.ones(32)})
    with pytest.raises(CheckpointError, match=f"norm_type '{kind}' is none of TDRMSN, LN"):
        from_file(path, heads=4)


@pytest.mark.parametrize(
    "name",
    ["stages.0.class_embeds.weight", "stages.0.blocks.0.block1.norm.scale.param0",
     "stages.1.input_layer.3.position_embeddings.weight", "stages.1.skip_denses.1.bias"],
)  # fmt: skip
def test_a_missing_tensor_is_named(recorded, tmp_path, name):
    state = {n: t for n, t in recorded[1].items() if n != name}
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        from_file(write(tmp_path / "a.pth", state), heads=4)


def test_another_measure_of_time_is_refused_in_the_reference():
    config = DiMRConfig(size=4, classes=2, widths=(32, 16), depths=(1, 1), tau_shift=-1.0)
    with torch.device("meta"), pytest.raises(ValueError, match="a quarter of the time"):
        to_reference(build_network(config))
