"""Kills at random moments: every resume continues, and the end is that of an unharmed run.

5 kills by default, 50 with DIFFIT_SOAK=full. With DIFFIT_FIGURES=FOLDER the figures are written to
`FOLDER/kills.json`.
"""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffit.checkpoint import checkpoints, newest
from diffit.config import write_yaml
from diffit.sealed import read_state
from diffit.training.journal import read_metrics
from tiny import tiny_run

pytestmark = pytest.mark.soak

FULL = os.environ.get("DIFFIT_SOAK") == "full"
KILLS, IMAGES = (50, 16_384) if FULL else (5, 4096)


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "diffit", "train", *map(str, words), "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()


def result(run: Path) -> dict[str, object]:
    """What two runs must agree on: every tensor of the last checkpoint, and every loss."""
    folder = checkpoints(run)[-1]
    files = read_state(folder)["files"]
    lines = [(line["images"], line["loss"]) for line in read_metrics(run / "metrics.jsonl")]
    return {"checkpoint": folder.name, "files": files, "lines": lines}


def test_kills_change_nothing(tmp_path):
    config = tmp_path / "config.yaml"
    settings = {"images": IMAGES, "batch": 32, "log_every": 256, "checkpoint_every": 256}
    write_yaml(config, tiny_run(**settings))
    began = time.monotonic()
    finish(start(config, "--out", tmp_path / "straight"))
    whole = time.monotonic() - began
    expected = result(tmp_path / "straight")

    dice = random.Random(0)
    figures = {"kills": 0, "before_the_first_step": 0, "while_writing": 0, "runs": 0}
    while figures["kills"] < KILLS:
        run = tmp_path / f"run{figures['runs']}"
        process = start(config, "--out", run)
        while figures["kills"] < KILLS:
            try:
                process.wait(dice.uniform(0, whole / 3))
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            note(figures, run)
            process = start(*resume(config, run))
        finish(process)
        assert result(run) == expected
        figures["runs"] += 1
    write_figures(figures, whole)


def resume(config: Path, run: Path) -> list[object]:
    """A run that was killed before it had a configuration starts over."""
    return ["--resume", run] if (run / "config.yaml").exists() else [config, "--out", run]


def note(figures: dict[str, int], run: Path) -> None:
    """What the kill hit; no checkpoint may ever be found damaged."""
    figures["kills"] += 1
    figures["before_the_first_step"] += not read_metrics(run / "metrics.jsonl")
    figures["while_writing"] += any(run.glob("checkpoints/.*")) or any(run.glob("averages/.*"))
    assert newest(run).damaged == {}


def write_figures(figures: dict[str, int], whole: float) -> None:
    folder = os.environ.get("DIFFIT_FIGURES")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    content = {
        "what": "SIGKILL at random moments of a training run; the final weights, optimiser, "
        "averages and losses are identical, bit for bit, to those of a run without kills",
        **figures,
        "identical": True,
        "images": IMAGES,
        "seconds_of_an_unharmed_run": round(whole, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    text = json.dumps(content, indent=1) + "\n"
    (Path(folder) / "kills.json").write_text(text, encoding="utf-8")
