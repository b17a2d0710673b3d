"""Predicted and measured peak memory of a training step, for five runs that differ in everything.

    python benchmarks/dry_run.py [NAME ...]

Each is measured in a process of its own on the CPU: the highest resident memory of some steps, less
the resident memory before the model was made. The C library is told to give back at once what is
freed, as the allocator of a GPU counts; by default it keeps pieces for later. Writes dry_run.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from diffit.config import parse
from diffit.training.estimate import estimate_memory, probe
from diffit.training.gauges import resident
from diffit.training.presets import read_config
from diffit.training.settings import RunConfig

RUNS: dict[str, dict[str, object]] = {
    "diffit-cifar10-small": {"batch": 8},
    "diffit-ffhq64": {"batch": 4, "activation_checkpointing": True},
    "dit-s-2-256": {"batch": 8, "micro_batch": 4},
    "latent-diffit-s-2-256": {"batch": 8, "precision": "bf16"},
    "uvit-s-2-cifar10": {"batch": 16, "micro_batch": 8, "activation_checkpointing": True},
}  # fmt: skip
"""Preset, and what is changed in its `train`."""
OUT = Path(__file__).with_name("dry_run.json")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
CPU = torch.device("cpu")


def config_of(preset: str, changes: dict[str, object]) -> RunConfig:
    settings = read_config(preset).model_dump()
    settings["train"] |= {**changes, "threads": 1}
    return parse(RunConfig, settings, source=preset)


def highest() -> int:
    """Bytes that were resident at the peak since `forget`."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def forget() -> None:
    """Let the peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(config: RunConfig) -> int:
    """Bytes of a run's step beyond what Python and its libraries take."""
    warm = config_of("tiny-dit", {"batch": 4, "precision": config.train.precision})
    probe(warm, CPU, images=4)  # loads what any step needs
    forget()
    before = resident()
    probe(config, CPU, images=config.train.batch, steps=2)
    return highest() - before


def compare(preset: str, changes: dict[str, object]) -> dict[str, object]:
    """What is predicted and measured for a run, in bytes."""
    command = [sys.executable, __file__, "--measure", preset, json.dumps(changes)]
    environment = {**os.environ, **ALLOCATOR}
    run = subprocess.run(command, check=True, capture_output=True, env=environment)
    measured = int(run.stdout)
    config = config_of(preset, changes)
    predicted = estimate_memory(config, CPU, images=config.train.batch)
    return {
        **changes,
        "predicted": predicted.total,
        "of it activations": predicted.activations,
        "measured": measured,
        "ratio": round(predicted.total / measured, 3),
    }


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(measure(config_of(sys.argv[2], json.loads(sys.argv[3]))))
        return
    found = json.loads(OUT.read_text())["runs"] if OUT.exists() else {}
    for preset in sys.argv[1:] or RUNS:
        found[preset] = compare(preset, RUNS[preset])
        print(preset, found[preset], flush=True)
        OUT.write_text(json.dumps({"torch": torch.__version__, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
