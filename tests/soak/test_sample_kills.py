"""Images drawn by one process, by three, and by commands killed at random moments: equal bytes.

300 images and 6 kills by default, 2000 and 20 with DIFFIT_SOAK=full. With DIFFIT_FIGURES=FOLDER the
figures are written to `FOLDER/sample-kills.json`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffit.checkpoint import save_model
from diffit.model import build_model
from tiny import tiny_run

pytestmark = pytest.mark.soak

FULL = os.environ.get("DIFFIT_SOAK") == "full"
KILLS, COUNT = (20, 2000) if FULL else (6, 300)
STARTUP = 2.0
"""Seconds until the first image, about."""


def start(checkpoint: Path, out: Path, processes: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "diffit", "sample", str(checkpoint), "--out", str(out), "--count",
        str(COUNT), "--steps", "8", "--guidance", "1.5", "--threads", "1", "--device", "cpu",
        "--processes", str(processes),
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def contents(out: Path) -> dict[str, bytes]:
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "samples.json"]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def make_checkpoint(folder: Path) -> Path:
    config = tiny_run()
    model = build_model(config.model)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    save_model(folder, config, {"model": model.network.state_dict()}, {"images": 0})
    return folder


def test_neither_processes_nor_kills_change_a_byte(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    began = time.monotonic()
    finish(start(checkpoint, tmp_path / "one", 1))
    drawing = max(time.monotonic() - began - STARTUP, 1.0)
    expected = contents(tmp_path / "one")
    assert len([name for name in expected if name.endswith(".png")]) == COUNT + 1  # and the grid
    finish(start(checkpoint, tmp_path / "three", 3))
    assert contents(tmp_path / "three") == expected

    dice = random.Random(0)
    kills = runs = groups = 0
    while kills < KILLS:
        out = tmp_path / f"run{runs}"
        while kills < KILLS:
            process = start(checkpoint, out, dice.choice((1, 2, 3)))
            try:
                process.wait(STARTUP + dice.uniform(0, 1.2 * drawing / KILLS))
                break
            except subprocess.TimeoutExpired:
                kills += 1
            # Half of the time the parent alone dies, and its workers must end by themselves.
            everybody = dice.random() < 0.5
            groups += everybody
            (os.killpg if everybody else os.kill)(process.pid, signal.SIGKILL)
            process.communicate()
        finish(start(checkpoint, out, 2))
        assert contents(out) == expected
        runs += 1
    write_figures({"kills": kills, "of_the_whole_group": groups, "runs": runs, "images": COUNT})


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


def write_figures(figures: dict[str, int]) -> None:
    folder = os.environ.get("DIFFIT_FIGURES")
    if not folder:
        return
    content = {
        "what": "SIGKILL at random moments of `diffit sample` in 1 to 3 processes; the files are "
        "identical, byte for byte, to those of one process, and of three, without kills",
        **figures,
        "identical": True,
        "torch": torch.__version__,
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "sample-kills.json").write_text(json.dumps(content, indent=1) + "\n")
