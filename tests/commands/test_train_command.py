"""`diffit train` and `diffit info` as a user runs them."""

import signal
import subprocess
import sys
import time

import pytest
import yaml

from diffit.checkpoint import checkpoints
from diffit.cli import main
from diffit.sealed import read_state
from diffit.training.journal import read_metrics

SHORT = ["--train.images", "64", "--train.batch", "16", "--train.snapshot-images", "10"]
SHORT += ["--sampling.steps", "2", "--device", "cpu", "--train.no-tensorboard"]


def diffit(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert diffit("train", "tiny-diffit", "--out", folder, *SHORT) == 0
    return folder


def test_a_run_leaves_everything_in_its_folder(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints"} <= names
    assert (run / "loss.png").exists()
    assert (run / "snapshots" / "000000000064" / "beside.png").exists()
    assert read_metrics(run / "metrics.jsonl")[-1]["images"] == 64


def test_the_saved_configuration_repeats_the_run(run, tmp_path):
    again = tmp_path / "again"
    words = ["train", run / "config.yaml", "--out", again, "--quiet", "--device", "cpu"]
    assert diffit(*words) == 0
    ours, theirs = (read_state(checkpoints(folder)[-1])["files"] for folder in (again, run))
    assert ours == theirs


def test_options_replace_settings_of_the_file(run):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["train"]["images"] == 64
    assert saved["train"]["lr"] == 0.002
    assert saved["model"]["class_names"] == list("0123456789")


def test_a_run_gets_more_images_when_it_is_resumed(run, capsys):
    assert diffit("train", "--resume", run, "--train.images", "96", "--device", "cpu") == 0
    assert read_state(checkpoints(run)[-1])["images"] == 96
    assert "draw images:  diffit sample" in capsys.readouterr().out


def refused(capsys, *words):
    """The one line with which a command is refused."""
    assert diffit(*words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("diffit: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "needs a configuration file or a preset as its first argument; presets are diffit-"),
        (["--out", "x"], "needs a configuration file or a preset as its first argument"),
        (["--resume"], "--resume needs the folder of a run"),
        (["tiny-difit", "--out", "x"], "did you mean 'tiny-diffit'?"),
        (["nowhere.yaml", "--out", "x"], "nowhere.yaml does not exist"),
        (["tiny-diffit"], "--out must be given"),
        (["tiny-diffit", "--out"], "--out needs a value"),
        (["tiny-diffit", "--out", "x", "--train.bach", "3"], "did you mean --train.batch?"),
        (["tiny-diffit", "--out", "x", "--train.batch", "x"], "'x' is no whole number"),
        (["tiny-diffit", "--out", "x", "--train.lr", "-1"], "train.lr is -1.0; it must be"),
        (["tiny-diffit", "--out", "x", "--model.network.window", "3"], "does not divide"),
        (["tiny-diffit", "--out", "x", "--device", "tpu"], "--device tpu is unknown"),
        (["tiny-diffit", "--out", "x", "--data.path", "gone"], "nothing to read at 'gone'"),
        (["tiny-diffit", "--out", "x", "--data.path", ""], "data.path is empty"),
        (["tiny-diffit", "--out", "x", "--sampling.sampler", "hein"], "did you mean 'heun'?"),
        (["diffit-cifar10", "--out", "x"], "data.path is empty"),
        (["dit-s-2-256", "--out", "x"], "data.path is empty"),
        (["--resume", "nowhere"], "--resume nowhere is no folder of a run"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, "train", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "setting 'model' is missing; setting 'data' is missing"),
        ("- 1", "must hold `name: value` lines"),
        ("model: {network: {name: diffit}}\ndata: {path: x}\ntrain: {lr: [}", "no valid YAML"),
        ("model: {network: {name: diffit}}\ndata: {path: x}\ntrian: {}", "did you mean 'train'"),
        ("model: {network: {name: unet}}\ndata: {path: x}", "'unet' is unknown"),
    ],
)
def test_mistakes_in_a_file_are_one_line(capsys, tmp_path, content, sentence):
    (tmp_path / "c.yaml").write_text(content)
    message = refused(capsys, "train", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert sentence in message


def test_what_weights_depend_on_cannot_change_on_resume(capsys, run):
    message = refused(capsys, "train", "--resume", run, "--train.lr", "1", "--train.seed", "3")
    assert "train.lr, train.seed cannot change when a run is resumed" in message
    assert f"--train.init-from {run}" in message


def test_a_taken_folder_is_refused(capsys, run):
    assert "holds a run already" in refused(capsys, "train", "tiny-diffit", "--out", run)


def test_help_reads_without_a_configuration_and_with_one(capsys):
    with pytest.raises(SystemExit) as end:
        diffit("train", "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "diffit-cifar10 " in text
    assert "--resume RUN" in text
    with pytest.raises(SystemExit) as end:
        diffit("train", "tiny-diffit", "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--train.lr" in text
    assert "(default: 0.002)" in text
    assert "Highest learning rate." in text


def test_ctrl_c_ends_with_130_and_says_how_to_continue(tmp_path):
    words = ["train", "tiny-diffit", "--out", "run", "--train.images", "9999999"]
    words += ["--train.log-every", "64", "--device", "cpu", "--train.threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffit", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("continue with: diffit train --resume run\n")
    (folder,) = checkpoints(tmp_path / "run")
    assert f"stopped at {int(folder.name):,} images" in err


@pytest.mark.parametrize("place", ["run", "checkpoint", "preset"])
def test_info_says_what_something_is(capsys, run, place):
    what = {"run": run, "checkpoint": checkpoints(run)[0], "preset": "tiny-diffit"}[place]
    assert diffit("info", what) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["network"] == "diffit, 8 x 8, channels 1"
    assert facts["parameters"] == "57,575"
    assert facts["time"] == "9,240 of them carry the noise level"
    assert facts["cost"] == "2.129 M multiplications a forward pass and image"
    assert facts["data"] == "builtin:digits"
    if place != "preset":
        assert facts["weights"] == "ema-0.99 (by default), model"
        assert facts["trained"].endswith(" s")


def test_info_names_a_damaged_checkpoint(capsys, tmp_path):
    folder = tmp_path / "run"
    diffit("train", "tiny-diffit", "--out", folder, "--quiet", *SHORT)
    (checkpoints(folder)[-1] / "model.safetensors").write_bytes(b"x")
    assert diffit("info", folder) == 0
    assert "model.safetensors has 1 bytes instead of" in capsys.readouterr().out


@pytest.mark.parametrize(("what", "sentence"), [("nothing", "no preset"), (".", "no config.yaml")])
def test_info_of_nothing_is_one_line(capsys, monkeypatch, tmp_path, what, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, "info", what)
