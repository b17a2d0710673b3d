"""`diffit export` as a user runs it."""

import json

import pytest

from diffit.checkpoint import save_model
from diffit.cli import main
from diffit.model import build_model
from tiny import tiny_run


@pytest.fixture
def checkpoint(tmp_path):
    config = tiny_run()
    model = build_model(config.model)
    save_model(tmp_path / "model", config, {"model": model.network.state_dict()}, {"images": 0})
    return tmp_path / "model"


def test_a_checkpoint_leaves_python_and_the_command_says_how_to_go_on(tmp_path, checkpoint, capsys):
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--steps", "4"]) == 0
    printed = capsys.readouterr().out
    assert "of PyTorch" in printed
    assert f"python {tmp_path / 'out' / 'sample.py'}" in printed
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert len(about["sigmas"]) == 5
    assert about["provenance"]["weights"] == "model"


def test_mistakes_are_one_sentence(tmp_path, checkpoint, capsys):
    (tmp_path / "taken").mkdir()
    for words, said in {
        (str(checkpoint), "--out", str(tmp_path / "taken")): "exists already",
        (str(tmp_path / "nothing"), "--out", str(tmp_path / "out")): "nothing",
        (str(checkpoint), "--out", str(tmp_path / "out"), "--to", "tflite"): "onnx",
        (str(checkpoint), "--out", str(tmp_path / "out"), "--weights", "best"): "has no weights",
    }.items():
        assert main(["export", *words]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert said in lines[0]
    assert not (tmp_path / "out").exists()
