"""Every network is trained, resumed, sampled, evaluated and described by the same commands."""

import pytest

from diffit.checkpoint import checkpoints
from diffit.cli import main
from diffit.sealed import read_state
from diffit.training.presets import presets, read_config

TINY = [name for name in presets() if name.startswith("tiny-")]
SHORT = ["--train.batch", "16", "--train.log-every", "16", "--train.snapshot-images", "10"]
SHORT += ["--sampling.steps", "2", "--device", "cpu", "--quiet", "--train.no-tensorboard"]


def diffit(*words):
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize("name", TINY)
def test_train_resume_sample_evaluate_info(name, tmp_path, capsys):
    whole, halves, samples = tmp_path / "whole", tmp_path / "halves", tmp_path / "samples"
    diffit("train", name, "--out", whole, "--train.images", "48", *SHORT)
    diffit("train", name, "--out", halves, "--train.images", "32", *SHORT)
    diffit("train", "--resume", halves, "--train.images", "48", "--device", "cpu", "--quiet")
    one, other = (read_state(checkpoints(run)[-1]) for run in (whole, halves))
    assert one["images"] == other["images"] == 48
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert one["files"][file] == other["files"][file]

    diffit("sample", whole, "--out", samples, "--count", "4", "--trajectory", "--device", "cpu")
    assert len(list((samples / "images").glob("*.png"))) == 4
    diffit("evaluate", samples, "--reference", "builtin:digits", "--features", "digits-cnn")
    capsys.readouterr()
    diffit("info", whole)
    network = read_config(name).model.network
    assert f"network      {network.name}, 8 x 8" in capsys.readouterr().out


def test_info_counts_what_each_kind_of_norm_costs(capsys):
    # The table of DiMR for blocks of width D: 2 D, 8 D, 16 D, 4 D^2 + 4 D, 6 D^2 + 6 D.
    assert main(["info", "dimr-xl-2r-256", "--norms"]) == 0
    printed = capsys.readouterr().out
    for kind, each in {
        "rms": 2 * 960,
        "td-rms": 8 * 960,
        "td-ln": 16 * 960,
        "adaln": 4 * 960**2 + 4 * 960,
        "adaln-zero": 6 * 960**2 + 6 * 960,
    }.items():
        row = next(line for line in printed.splitlines() if line.split()[:2] == ["norms", kind])
        assert f"{each:,} a block of width 960, {39 * each:,} in 39 blocks" in row
