"""Ternary models through the commands, as a user runs them."""

import pytest
import torch
import yaml

from diffit.checkpoint import checkpoints, load
from diffit.cli import main
from diffit.nn.ternary import TernaryConfig, TernaryLinear

SHORT = ["--train.images", "64", "--train.batch", "16", "--train.no-tensorboard", "--quiet"]
SHORT += ["--train.snapshot-images", "10", "--sampling.steps", "2", "--device", "cpu"]


def diffit(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["--model.linear", "ternary", "--model.linear.granularity", "row"]
    assert diffit("train", "tiny-dit", "--out", folder, *words, *SHORT) == 0
    return folder


def test_an_option_makes_the_layers_ternary(run):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert TernaryConfig(**saved["model"]["linear"]) == TernaryConfig(granularity="row")
    assert any(isinstance(m, TernaryLinear) for m in load(run).network.modules())


def test_a_name_in_a_file_does_too(run, tmp_path):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    saved["model"]["linear"] = "ternary"
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(saved))
    words = [tmp_path / "x.yaml", "--train.images", "16", "--device", "cpu", "--quiet"]
    assert diffit("train", *words, "--out", tmp_path / "run") == 0
    assert load(tmp_path / "run").config.linear == TernaryConfig()


def test_an_unknown_kind_is_one_sentence(tmp_path, capsys):
    assert diffit("train", "tiny-dit", "--model.linear", "tenary", "--out", tmp_path / "x") == 2
    expected = "model.linear.name 'tenary' is unknown; did you mean 'ternary'?"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_run_goes_on_and_is_drawn_from(run, tmp_path):
    assert diffit("train", "--resume", run, "--train.images", "80", "--quiet") == 0
    assert len(checkpoints(run)) == 2
    assert diffit("sample", run, "--out", tmp_path / "x", "--count", 3, "--device", "cpu") == 0
    assert len(list((tmp_path / "x").rglob("[0-9]*.png"))) == 3


def test_a_hub_folder_holds_the_masters(run, tmp_path):
    out = tmp_path / "out"
    assert diffit("hub", "export", run, out) == 0
    ours, theirs = load(run), load(out)
    assert theirs.config.linear == ours.config.linear
    tensors = theirs.network.state_dict()
    for name, tensor in ours.network.state_dict().items():
        assert torch.equal(tensors[name], tensor)


def test_a_network_of_less_precision_has_the_same_codes(run, tmp_path):
    out = tmp_path / "out"
    assert diffit("hub", "export", run, out, "--dtype", "bf16") == 0
    exact, low = load(run), load(out, dtype=torch.bfloat16)
    assert low.denoiser.dtype == torch.bfloat16
    for name, layer in exact.network.named_modules():
        if isinstance(layer, TernaryLinear):
            rounded = low.network.get_submodule(name)
            assert rounded.bias.dtype == torch.bfloat16
            assert torch.equal(rounded.ternary().codes, layer.ternary().codes)
            assert torch.equal(rounded.ternary().scale, layer.ternary().scale)
    x, sigma = torch.randn(4, *exact.shape), torch.tensor(1.0)
    expected = exact.denoiser(x, sigma)
    assert (low.denoiser(x, sigma) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("options", [[], ["--approximate"]])
def test_ternary_layers_are_not_exported_to_a_code_without_them(run, tmp_path, capsys, options):
    out = tmp_path / "out"
    assert diffit("convert", run, "--to", "diffusers", *options, "--out", out) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith("has dense linear layers alone, and this network has TernaryLinear")
    assert not out.exists()


def told(capsys, what):
    assert diffit("info", what) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    return lines["linear"].strip()


def test_info_tells_the_share_of_ternary_weights_and_the_size_once_packed(run, capsys):
    # In each of two blocks of width 40: qkv, out, two of the MLP, modulation.
    linears = 2 * (3 + 1 + 2 * 2 + 6) * 40**2
    found = told(capsys, run)
    parameters = sum(p.numel() for n, p in load(run).network.named_parameters() if "scale" not in n)
    assert f"ternary, {100 * linears / parameters:.4g} % of the parameters" in found
    assert "bits a parameter once packed" in found
    assert 2 < float(found.split("; ")[1].split(" bits")[0]) < 12


def test_info_tells_how_much_of_a_dense_network_its_linear_layers_are(capsys):
    found = told(capsys, "dit-xl-2-256")
    assert found == "dense, 99.11 % of the parameters; 32 bits a parameter, 2.701 GB"
