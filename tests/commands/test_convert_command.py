"""`diffit convert`, as a user runs it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from autoencoders import make
from convert.files import dit_network, recorded, v2_network, write, write_network
from diffit.checkpoint import load
from diffit.cli import main
from diffit.commands import convert
from diffit.training.loop import train
from tiny import tiny_run


@pytest.fixture
def official(tmp_path):
    return write(tmp_path / "official.safetensors", recorded("diffit")[1])


def test_it_says_what_it_made(official, tmp_path, capsys):
    assert main(["convert", str(official), "--out", str(tmp_path / "ours")]) == 0
    said = capsys.readouterr().out
    assert "cc-by-nc-sa-4.0 (for non-commercial use only" in said
    assert "diffit, NVlabs/DiffiT (March 2026)" in said
    assert "88,024 parameters" in said
    assert "32 mapped, 2 checked and dropped" in said
    assert "of the largest output in float64" in said
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "README.md", "certificate.json", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert load(tmp_path / "ours").config.network.name == "latent-diffit"


@pytest.mark.parametrize("family", ["diffit", "diffit-v2", "dit"])
def test_to_reference_gives_the_file_back(tmp_path, family):
    if family == "diffit":
        source, options = write(tmp_path / "a.safetensors", recorded("diffit")[1]), []
    elif family == "dit":
        source = write_network(tmp_path / "a.safetensors", dit_network())
        options = ["--heads", "4"]
    else:
        source = write_network(tmp_path / "a.safetensors", v2_network())
        options = ["--source-size", "64"]
    assert main(["convert", str(source), "--out", str(tmp_path / "ours"), *options]) == 0
    words = ["convert", str(tmp_path / "ours"), "--to", "reference", "--out"]
    assert main([*words, str(tmp_path / "back")]) == 0
    before, after = load_file(source), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["family"] == family


def test_another_size_is_recommended_other_guidance(official, tmp_path, capsys):
    words = ["convert", str(official), "--size", "512", "--no-certify", "--out"]
    assert main([*words, str(tmp_path / "large")]) == 0
    assert "8 to 64 a side, positions scaled" in capsys.readouterr().out
    model = load(tmp_path / "large")
    assert model.shape == (4, 64, 64)
    assert (model.sampling.guidance, model.sampling.guidance_schedule) == (1.49, "constant")


def test_own_models_are_resized_and_exported(official, tmp_path, capsys):
    assert main(["convert", str(official), "--out", str(tmp_path / "ours")]) == 0
    words = ["convert", str(tmp_path / "ours"), "--size", "128", "--out", str(tmp_path / "double")]
    assert main(words) == 0
    double = load(tmp_path / "double")
    assert double.shape == (4, 16, 16)
    assert double.provenance["licence"] == "cc-by-nc-sa-4.0"
    assert main(["convert", str(tmp_path / "double"), "--out", str(tmp_path / "x")]) == 2
    assert "choose --to reference or diffusers, or another --size" in capsys.readouterr().err


def test_the_same_size_changes_nothing(official, tmp_path, capsys):
    words = ["convert", str(official), "--size", "64", "--out", str(tmp_path / "ours")]
    assert main(words) == 0
    assert "resized" not in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "ours"), "--size", "64", "--out", str(tmp_path / "x")])
    assert "choose --to reference or diffusers, or another --size" in capsys.readouterr().err


def test_an_autoencoder_is_read_and_must_fit(official, tmp_path, capsys):
    make("kl", tmp_path / "vae", latent_channels=4, scaling_factor=0.5)
    words = ["convert", str(official), "--codec", str(tmp_path / "vae"), "--out"]
    assert main([*words, str(tmp_path / "ours")]) == 0
    codec = load(tmp_path / "ours").config.codec
    assert (codec.kind, codec.channels, codec.factor, codec.scale) == ("kl", 4, 4, 0.5)
    assert codec.rounding == "down"
    make("kl", tmp_path / "vae", latent_channels=3)
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "latents of 3 channels, the weights are for 4" in capsys.readouterr().err


def test_scaled_positions_go_nowhere_that_computes_them_anew(tmp_path, capsys):
    source = write_network(tmp_path / "v2.pt", v2_network())
    words = ["convert", str(source), "--source-size", "64", "--size", "128", "--to", "reference"]
    assert main([*words, "--out", str(tmp_path / "scaled")]) == 2
    assert "as after resizing with scaled positions" in capsys.readouterr().err
    assert main([*words, "--positions", "plain", "--out", str(tmp_path / "plain")]) == 0
    theirs = torch.load(source, weights_only=True)
    assert load_file(tmp_path / "plain" / "model.safetensors").keys() == theirs.keys()


def test_a_run_of_a_network_that_nobody_else_has_is_refused(tmp_path, capsys):
    train(tiny_run(images=16), tmp_path / "run", quiet=True)
    words = ["convert", str(tmp_path / "run"), "--to", "reference", "--out", str(tmp_path / "x")]
    assert main(words) == 2
    assert "no published code has a network like 'diffit'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


REFUSED = [
    (["--out", "."], "--out . exists already; name a new folder"),
    (["--family", "vit"], "--family 'vit' is unknown; choose from diffit, diffit-v2, dit"),
    (["--approximate"], "--approximate is for --to diffusers alone"),
    (["--size", "100"], "--size 100 is no multiple of 8, the autoencoder's factor"),
    (["--source-size", "100"], "images of side 100 have no whole latent; 8 must divide it"),
    (["--size", "0"], "size is 0; it must be greater than 0"),
    (["--weights", "ema"], "holds one set of weights; leave --weights ema out"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_mistakes_end_in_one_line(official, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in options else ["--out", "new"]
    assert main(["convert", str(official), *out, *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "new").exists()


def test_options_for_foreign_weights_are_refused_with_own_models(official, tmp_path, capsys):
    assert main(["convert", str(official), "--out", str(tmp_path / "ours")]) == 0
    for option in (["--heads", "4"], ["--codec", "vae"], ["--source-size", "64"]):
        words = ["convert", str(tmp_path / "ours"), "--out", str(tmp_path / "x"), *option]
        assert main(words) == 2
        assert f"{option[0]} is for weights of others" in capsys.readouterr().err


def test_a_full_disk_is_refused_before_anything_is_read(official, tmp_path, capsys, monkeypatch):
    usage = convert.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: usage)
    assert main(["convert", str(official), "--out", str(tmp_path / "ours")]) == 2
    assert "has 0.0 GB free, and the weights need 0.0 GB" in capsys.readouterr().err


def test_an_interrupted_conversion_leaves_nothing(official, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert.json, "dumps", interrupted)
    assert main(["convert", str(official), "--out", str(tmp_path / "ours")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["official.safetensors"]
