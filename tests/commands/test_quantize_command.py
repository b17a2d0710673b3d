"""`diffit quantize`, as a user runs it, and what other commands make of the result."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffit.checkpoint import load
from diffit.cli import main
from diffit.config import parse
from diffit.deploy.quantize_report import Report
from diffit.errors import CheckpointError
from diffit.hub.folder import CONFIG, FileNote, file_sha256
from diffit.training.loop import train
from diffit.training.settings import RunConfig
from latent_sets import cache
from tiny import TRAIN, tiny_run

KINDS = {
    "int8": (["--to", "int8"], 0.01),
    "int8 activations": (["--to", "int8", "--activations", "int8", "--layers", "all"], 0.03),
    "int4": (["--to", "int4", "--group", "16", "--layers", "all"], 0.15),
}
QUICK = ["--images", "4", "--calibrate", "8", "--levels", "2", "--no-measure", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "dense"
    train(tiny_run(images=256, lr=1e-2), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def ternary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ternary"
    config = tiny_run(images=256, lr=1e-2)
    linear = {"linear": {"name": "ternary", "skip": ["*.qkv_time"]}}
    model = parse(type(config.model), {**config.model.model_dump(), **linear}, source="test")
    train(config.model_copy(update={"model": model}), folder, quiet=True)
    return folder


def quantize(source, out, *options):
    return main(["quantize", str(source), "--out", str(out), *QUICK, *options])


@pytest.fixture(scope="module")
def int8(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "int8"
    assert quantize(run, out, "--to", "int8") == 0
    return out


def evaluate(model):
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.denoiser(x, torch.tensor([0.5, 2.0]), torch.tensor([0, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_nearly_the_model(run, tmp_path, capsys, kind):
    options, most = KINDS[kind]
    out = tmp_path / "out"
    assert quantize(run, out, *options) == 0
    shown = capsys.readouterr().out
    assert "error of D" in shown
    assert f"are {options[1]}" in shown
    assert str(out) in shown
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "quantization.json", "quantization.png",
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*"))
    model = load(out)
    assert model.config.linear.name == options[1]
    exact = evaluate(load(run))
    assert 0 < (evaluate(model) - exact).norm() < most * exact.norm()


def test_the_report_says_what_was_measured(run, int8):
    report = parse(Report, json.loads((int8 / "quantization.json").read_text()), source="test")
    assert report.kind == "int8"
    assert report.target == 0.01
    assert report.error <= 0.01
    assert len(report.levels) == 2
    assert report.data == "builtin:digits"
    assert 8 < report.bits < 12
    assert {layer.name for layer in report.layers} >= {"encoder.0.0.block.attention.qkv"}
    assert report.costs["int8"].bytes < 0.8 * report.costs["fp32"].bytes


def test_speed_and_memory_are_measured_beside_those_of_the_dense_model(
    run, tmp_path, capsys, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        "diffit.commands.quantize.peak_memory", lambda what, **how: asked.append(how) or 3_000_000
    )
    assert quantize(run, tmp_path / "out", "--to", "int8", "--measure", "--draw", "2") == 0
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert "3 MB" in shown
    assert [how.get("dtype") for how in asked] == [None, "bfloat16", None]
    assert {how["images"] for how in asked} == {4}
    costs = json.loads((tmp_path / "out" / "quantization.json").read_text())["costs"]
    assert list(costs) == ["fp32", "bf16", "int8"]
    assert all(cost["images_per_second"] > 0 for cost in costs.values())


def test_other_commands_read_it(int8, tmp_path, capsys):
    assert main(["info", str(int8)]) == 0
    assert "int8," in capsys.readouterr().out
    drawn = tmp_path / "drawn"
    sample = ["sample", str(int8), "--out", str(drawn), "--count", "20", "--steps", "2"]
    assert main([*sample, "--device", "cpu", "--precision", "bf16"]) == 0
    assert len(list((drawn / "images").rglob("*.png"))) == 20
    measure = ["evaluate", str(drawn), "--features", "digits-cnn", "--draws", "2"]
    assert main([*measure, "--reference", "builtin:digits", "--device", "cpu"]) == 0
    assert main(["hub", "export", str(int8), str(tmp_path / "hub"), "--dtype", "fp16"]) == 0
    assert load(tmp_path / "hub").config.linear == load(int8).config.linear


def test_what_was_trained_ternary_is_packed_exactly(ternary, tmp_path, capsys):
    exact = evaluate(load(ternary))
    for storage in ("2-bit", "base-3"):
        out = tmp_path / storage
        assert quantize(ternary, out, "--to", "ternary-packed", "--storage", storage) == 0
        shown = capsys.readouterr()
        assert "0.00%" in shown.out
        assert "trained to be ternary" not in shown.err
        packed = load(out)
        assert (evaluate(packed) - exact).norm() <= 1e-6 * exact.norm()
        assert packed.config.linear.skip == ("*.qkv_time",)
    sizes = [(tmp_path / s / "model.safetensors").stat().st_size for s in ("2-bit", "base-3")]
    assert sizes[1] < sizes[0]


def test_ternary_weights_of_a_dense_model_come_with_a_warning(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert quantize(run, out, "--to", "ternary-packed", "--granularity", "tensor") == 0
    assert (
        "were not trained to be ternary: the network's output is off by" in capsys.readouterr().err
    )
    assert load(out).config.linear.granularity == "tensor"


def test_calibration_makes_the_error_smaller(run, tmp_path):
    errors = []
    for images in ("0", "64"):
        out = tmp_path / images
        options = ["--to", "int4", "--group", "16", "--layers", "all", "--calibrate", images]
        assert quantize(run, out, *options) == 0
        errors.append(json.loads((out / "quantization.json").read_text())["error"])
    assert errors[1] < 0.8 * errors[0]


def test_skipped_layers_stay_as_they_are(run, tmp_path):
    out = tmp_path / "a" / "new" / "folder"
    assert quantize(run, out, "--to", "int8", "--skip", "*.mlp.*") == 0
    names = load(out).network.state_dict().keys()
    assert "encoder.0.0.block.mlp.up.weight" in names
    assert "encoder.0.0.block.attention.qkv.codes" in names


def test_models_of_latents_need_no_autoencoder(tmp_path, capsys):
    cache(tmp_path / "latents")
    network = {
        "name": "latent-diffit", "size": 4, "channels": 4, "classes": 2, "patch": 2, "depth": 1,
        "width": 16, "heads": 2, "time_features": 16,
    }  # fmt: skip
    content = {"model": {"network": network}, "data": {"path": str(tmp_path / "latents")}}
    config = parse(RunConfig, {**content, "train": {**TRAIN, "images": 64}}, source="test")
    train(config, tmp_path / "run", quiet=True)
    assert quantize(tmp_path / "run", tmp_path / "out", "--to", "int8") == 0
    assert load(tmp_path / "out").shape == (4, 4, 4)
    other = ["--data", "builtin:patches", "--to", "int8"]
    assert quantize(tmp_path / "run", tmp_path / "again", *other) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_equal_commands_write_equal_bytes(run, int8, tmp_path):
    assert quantize(run, tmp_path / "again", "--to", "int8") == 0
    for name in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "again" / name).read_bytes() == (int8 / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--to", "int8", "--group", "64"], "--group is for --to int4 and ternary-packed; leave"),
        (["--to", "int4", "--activations", "int8"], "--activations is for --to int8 and ternary"),
        (["--to", "int8", "--storage", "base-3"], "--storage is for --to ternary-packed; leave"),
        (["--to", "int4", "--group", "33"], "group is 33"),
        (["--to", "ternary-packed", "--group", "32"], "--group of ternary-packed needs --granular"),
        (["--to", "int8", "--layers", "all", "--error", "0.1"], "--layers all takes every layer"),
        (["--to", "int8", "--skip", "blocks.*"], "--skip blocks.* is the name of no linear layer"),
        (["--to", "int4", "--error", "1e-9"], "no choice of layers keeps the error within 1e-09"),
        (["--to", "int8", "--data", "nowhere"], "nowhere"),
        (["--to", "int8", "--weights", "ema-7"], "has no weights 'ema-7'; there are:"),
        (["--to", "int16"], "int16"),
    ],
)
def test_what_cannot_work_is_one_sentence(run, tmp_path, capsys, options, sentence):
    assert quantize(run, tmp_path / "out", *options) == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert quantize(run, tmp_path / "out", "--to", "int8") == 2
    assert "exists already; name a new folder" in capsys.readouterr().err


def test_what_is_quantised_is_refused(int8, ternary, tmp_path, capsys):
    data = ["--data", "builtin:digits"]
    assert quantize(int8, tmp_path / "out", "--to", "int4", *data) == 2
    assert "has int8 layers already; quantise the model" in capsys.readouterr().err
    assert quantize(ternary, tmp_path / "out", "--to", "int8") == 2
    assert "--to ternary-packed keeps them exactly" in capsys.readouterr().err
    assert quantize(ternary, tmp_path / "out", "--to", "ternary-packed", "--skip", "a") == 2
    assert "--skip is for full-precision weights" in capsys.readouterr().err


def test_a_model_without_data_asks_for_some(run, tmp_path, capsys):
    assert main(["hub", "export", str(run), str(tmp_path / "hub")]) == 0
    assert quantize(tmp_path / "hub", tmp_path / "out", "--to", "int8") == 2
    assert "does not say on which images it was trained; name some" in capsys.readouterr().err
    assert quantize(tmp_path / "hub", tmp_path / "out", "--to", "int8", "--data",
                    "builtin:digits") == 0  # fmt: skip


def test_other_layouts_have_no_room_for_it(int8, tmp_path, capsys):
    words = ["convert", str(int8), "--to", "reference", "--out", str(tmp_path / "x")]
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_killed_command_leaves_nothing_but_its_notes(run, int8, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("diffit.commands.quantize.draw", stop)
        assert quantize(run, tmp_path / "out", "--to", "int8") == 130
    assert [path.name for path in tmp_path.iterdir()] == [".out.errors.json"]
    assert quantize(run, tmp_path / "out", "--to", "int8") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (int8 / name).read_bytes()


def spoil(folder, change):
    """Change the tensors of a hub-style folder, checksums and all: a hostile file, not a damage."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    content = json.loads((folder / CONFIG).read_text())
    file = folder / "model.safetensors"
    note = FileNote(bytes=file.stat().st_size, sha256=file_sha256(file))
    content["files"] = {"model.safetensors": note.model_dump()}
    (folder / CONFIG).write_text(json.dumps(content))


LAYER = "encoder.0.0.block.mlp.up"


@pytest.mark.parametrize(
    ("options", "change", "sentence"),
    [
        (["--to", "int8"], lambda t: t.pop(f"{LAYER}.scale"), f"lacks tensor '{LAYER}.scale'"),
        (["--to", "int8"], lambda t: t.update({f"{LAYER}.codes": t[f"{LAYER}.codes"].float()}),
         f"tensor '{LAYER}.codes' holds float32, which its layer does not take"),
        (["--to", "int8"], lambda t: t[f"{LAYER}.scale"].fill_(torch.inf),
         f"{LAYER}: tensor scale has numbers that are not finite"),
        (["--to", "int4", "--layers", "all"],
         lambda t: t.update({f"{LAYER}.codes": t[f"{LAYER}.codes"][:-1].clone()}), "has shape"),
        (["--to", "ternary-packed"], lambda t: t[f"{LAYER}.codes"].fill_(255), f"{LAYER}: "),
    ],
)  # fmt: skip
def test_hostile_tensors_are_refused(run, tmp_path, options, change, sentence, recwarn):
    assert quantize(run, tmp_path / "out", *options) == 0
    spoil(tmp_path / "out", change)
    with pytest.raises(CheckpointError, match=sentence.replace(".", r"\.")) as refusal:
        load(tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_a_truncated_file_is_refused(int8, tmp_path):
    shutil.copytree(int8, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is damaged: model\.safetensors has"):
        load(tmp_path / "out")
