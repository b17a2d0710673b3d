"""Kills at random moments of commands that work in two processes: nothing lost, nothing repeated.

Training (also with sharded weights, and writing checkpoints), encoding and sampling; each time one
process, all of them, or the one that started them is killed. 6 kills by default, 200 with
DIFFIT_SOAK=full. With DIFFIT_FIGURES=FOLDER the figures go to `FOLDER/kills-together.json`.
"""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from autoencoders import make
from diffit.checkpoint import checkpoints, newest, save_model
from diffit.config import write_yaml
from diffit.model import build_model
from diffit.sealed import read_state
from diffit.training.journal import read_metrics
from tiny import tiny_run

pytestmark = pytest.mark.soak

FULL = os.environ.get("DIFFIT_SOAK") == "full"
SEED = 0
KILLS = {"train": 100, "train-fsdp": 20, "encode": 40, "sample": 40} if FULL else {
    "train": 2, "train-fsdp": 2, "encode": 1, "sample": 1
}  # fmt: skip
IMAGES = 8192 if FULL else 2048
PATIENCE = 120
"""Seconds in which what is left of a killed command has to end by itself."""


@dataclass
class Work:
    """A command that can be repeated until it is done.

    Attributes:
        words: of the command, given the folder that it makes.
        result: what two folders must agree on.
        check: looks at a folder after a kill.
        complete: whether the command would refuse to be repeated, since all is done.
    """

    words: Callable[[Path], list[object]]
    result: Callable[[Path], Any]
    check: Callable[[Path], object] = lambda out: None
    complete: Callable[[Path], bool] = lambda out: False


class Command:
    """A running `diffit` command and all processes that it starts, in whatever session."""

    def __init__(self, words: list[object]) -> None:
        self.mark = f"DIFFIT_SOAK_MARK={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diffit", *map(str, words), "--device", "cpu"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, name: value},
            start_new_session=True,
        )

    def finish(self) -> None:
        _, errors = self.process.communicate()
        assert self.process.returncode == 0, errors.decode()

    def living(self) -> list[int]:
        """Its processes: each has inherited the mark in its environment."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                ours = self.mark.encode() in environ.read_bytes().split(b"\0")  # none of a zombie
            except OSError:
                continue
            if ours:
                found.append(int(environ.parent.name))
        return sorted(found)

    def kill(self, dice: random.Random) -> str:
        """Kill some of its processes, and wait until all have ended."""
        whom = dice.choice(("one", "all", "first"))
        running = self.living()
        others = [pid for pid in running if pid != self.process.pid]
        chosen = {"one": [dice.choice(others)] if others else running, "all": running,
                  "first": [self.process.pid]}[whom]  # fmt: skip
        for pid in chosen:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while self.living():
            assert time.monotonic() < deadline, f"processes are left after a kill of {whom}"
            time.sleep(0.1)
        return whom


def harass(work: Work, folder: Path, kills: int, dice: random.Random) -> Counter[str]:
    """Run a work again and again, killed so many times, and compare each end."""
    began = time.monotonic()
    Command(work.words(folder / "straight")).finish()
    whole, expected = time.monotonic() - began, work.result(folder / "straight")
    counts: Counter[str] = Counter()
    while sum(counts.values()) - counts["runs"] < kills:
        out = folder / f"run{counts['runs']}"
        command: Command | None = Command(work.words(out))
        while command and sum(counts.values()) - counts["runs"] < kills:
            try:
                command.process.wait(dice.uniform(1, whole))
                break
            except subprocess.TimeoutExpired:
                counts[command.kill(dice)] += 1
            work.check(out)
            command = None if work.complete(out) else Command(work.words(out))
        if command:
            command.finish()
        assert work.result(out) == expected
        counts["runs"] += 1
    return counts


def training(config: Path, *more: object) -> Work:
    def result(run: Path) -> Any:
        folder = checkpoints(run)[-1]
        files = read_state(folder)["files"]
        lines = [(line["images"], line["loss"]) for line in read_metrics(run / "metrics.jsonl")]
        return folder.name, files, lines

    def check(run: Path) -> None:
        assert newest(run).damaged == {}

    def words(run: Path) -> list[object]:
        return ["train", config, "--out", run, "--or-resume", "--processes", 2, *more]

    return Work(words, result, check)


def contents(out: Path) -> dict[str, bytes]:
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "samples.json"]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


@pytest.fixture
def works(tmp_path: Path) -> dict[str, Work]:
    config = tmp_path / "config.yaml"
    settings = {"images": IMAGES, "batch": 32, "log_every": 256, "checkpoint_every": 256}
    write_yaml(config, tiny_run(**settings))
    model = build_model(tiny_run().model)
    save_model(tmp_path / "model", tiny_run(), {"model": model.network.state_dict()}, {"images": 0})
    make("kl", tmp_path / "kl")
    return {
        "train": training(config),
        "train-fsdp": training(config, "--train.parallel.kind", "fsdp"),
        "encode": Work(
            lambda out: ["data", "encode", "builtin:patches", out, "--codec", tmp_path / "kl",
                         "--size", 32, "--processes", 2],
            contents,
            complete=Path.exists,
        ),
        "sample": Work(
            lambda out: ["sample", tmp_path / "model", "--out", out, "--count", 800, "--steps", 8,
                         "--threads", 1, "--processes", 2],
            contents,
        ),
    }  # fmt: skip


def test_kills_of_two_processes_change_nothing(works: dict[str, Work], tmp_path: Path) -> None:
    dice = random.Random(SEED)
    counts = {}
    for name, kills in KILLS.items():
        folder = tmp_path / name
        folder.mkdir()
        counts[name] = harass(works[name], folder, kills, dice)
    write_figures(counts)


def write_figures(counts: dict[str, Counter[str]]) -> None:
    folder = os.environ.get("DIFFIT_FIGURES")
    if not folder:
        return
    content = {
        "what": "SIGKILL at random moments of commands in two processes: of one of them, of all, "
        "or of the first, which started the others; weights, optimiser, averages, losses, latents "
        "and images are those of commands without kills, byte for byte",
        "kills": sum(sum(count.values()) - count["runs"] for count in counts.values()),
        "seed": SEED,
        **{name: dict(count) for name, count in counts.items()},
        "identical": True,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "kills-together.json").write_text(json.dumps(content, indent=1) + "\n")
