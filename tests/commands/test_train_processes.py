"""`diffit train --processes`, as a user runs it: killed, told to end, started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffit.checkpoint import checkpoint_folder, checkpoints
from diffit.cli import main
from diffit.config import to_yaml
from diffit.sealed import read_state
from diffit.training.loop import train
from tiny import tiny_run

LENGTH = 1600
EVERY = 320


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(to_yaml(tiny_run(images=LENGTH, checkpoint_every=EVERY)))
    return file


def start(config, run, *options):
    words = ["train", str(config), "--out", str(run), "--processes", "2", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "diffit", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_a_checkpoint(run, process):
    deadline = time.monotonic() + 120
    while not checkpoints(run):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker(parent: int, rank: int) -> int:
    """The process of this rank under a launcher."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(status[1]) == parent and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_group_of_which_one_is_killed_starts_again_and_ends_as_if_nothing_had_been(
    config, tmp_path
):
    process = start(config, tmp_path / "run", "--max-restarts", "1", "--quiet")
    wait_for_a_checkpoint(tmp_path / "run", process)
    os.kill(worker(process.pid, 0), signal.SIGKILL)
    out, said = process.communicate(timeout=240)
    assert (process.returncode, out, said) == (0, "", "")
    train(tiny_run(images=LENGTH, checkpoint_every=EVERY), tmp_path / "alone", quiet=True)
    ours, alone = (
        read_state(checkpoint_folder(tmp_path / name, LENGTH))["files"] for name in ("run", "alone")
    )
    for name in ("model", "optimizer", "ema-0.9"):
        assert ours[f"{name}.safetensors"] == alone[f"{name}.safetensors"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_killed_process_ends_a_group_with_one_line_and_sigterm_with_a_checkpoint(
    config, tmp_path
):
    run = tmp_path / "run"
    process = start(config, run, "--train.images", "1000000", "--quiet")
    wait_for_a_checkpoint(run, process)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert "process 1 of the run was ended by SIGKILL; continue with" in said

    before = len(list((run / "checkpoints").iterdir())), checkpoints(run)[-1]
    process = start(config, run, "--train.images", "1000000", "--or-resume")
    wait_until_it_is_past(checkpoints(run)[-1], run, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert said.startswith("diffit: stopped at ")
    assert said.count("\n") == 1
    assert checkpoints(run)[-1] > before[1]


def wait_until_it_is_past(checkpoint, run, process):
    deadline = time.monotonic() + 120
    while checkpoints(run)[-1] == checkpoint:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_or_resume_starts_a_run_or_continues_it(config, tmp_path, capsys):
    words = ["train", str(config), "--out", str(tmp_path / "run"), "--or-resume", "--quiet"]
    assert main([*words, "--train.images", "64"]) == 0
    assert main([*words, "--train.images", "128"]) == 0
    assert checkpoint_folder(tmp_path / "run", 128) in checkpoints(tmp_path / "run")
    assert main([*words, "--train.lr", "1"]) == 2
    assert "train.lr cannot change when a run is resumed" in capsys.readouterr().err


def test_a_command_that_is_started_again_resumes_by_itself(config, tmp_path, monkeypatch, capsys):
    words = ["train", str(config), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "--train.images", "64"]) == 0
    assert main([*words, "--train.images", "128"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main([*words, "--train.images", "128"]) == 0
    assert checkpoint_folder(tmp_path / "run", 128) in checkpoints(tmp_path / "run")
