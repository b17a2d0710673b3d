"""`diffit train CONFIG --dry-run`: what a run will take, without beginning it."""

import math
from pathlib import Path

import torch
from pydantic import PositiveInt
from rich.console import Console

from diffit.config import Settings
from diffit.data import DataConfig
from diffit.distributed import pick_device
from diffit.errors import UsageError
from diffit.generation import SamplingConfig
from diffit.model import ModelConfig
from diffit.training.console import duration
from diffit.training.estimate import (
    Memory,
    Pace,
    estimate_disk,
    estimate_memory,
    parameters_of,
    probe,
)
from diffit.training.settings import RunConfig, TrainConfig


class DryRunArgs(Settings):
    """Say what a run would take: memory, time, room on the disk; train nothing."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    sampling: SamplingConfig
    dry_run: bool = True
    """This."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    processes: PositiveInt = 1
    """Devices that would share every batch."""
    probe: bool = True
    """Take ten steps to measure the speed, if they fit into memory."""


def estimate(args: DryRunArgs) -> None:
    """Print one fact per line."""
    config = RunConfig(model=args.model, data=args.data, train=args.train, sampling=args.sampling)
    if args.train.batch < args.processes:
        raise UsageError(
            f"train.batch {args.train.batch} is fewer images than --processes {args.processes}"
        )
    device = pick_device(args.device)
    images = -(-config.train.batch // args.processes)
    with Console(stderr=True).status("a step on tensors without content ..."):
        alone = estimate_memory(config, device, images=images)
    facts = {"parameters": f"{parameters_of(config):,}"} | _memory(alone, args, images)
    needed, free = alone.total, free_memory(device)
    pace = None
    if args.probe and needed < free:
        with Console(stderr=True).status("ten steps ..."):
            pace = probe(config, device, images=images)
    facts |= _time(config, pace, args.processes)
    if pace is None:
        facts["speed"] = (
            f"not measured: {_gb(needed)} are needed here, {_gb(free)} are free"
            if args.probe
            else "not measured"
        )
    facts |= _disk(config, alone)
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name:{width}}  {text}")


def _memory(alone: Memory, args: DryRunArgs, images: int) -> dict[str, str]:
    micro = min(args.train.micro_batch or images, images)
    facts = {
        "weights": _gb(alone.weights),
        "gradients": _gb(alone.gradients),
        "optimiser": _gb(alone.moments),
        "averages": f"{_gb(alone.averages)} ({', '.join(args.train.ema.names) or 'none'})",
        "activations": f"{_gb(alone.activations)} at {micro} images, {args.train.precision}",
    }
    if args.processes == 1:
        return facts | {"memory": f"{_gb(alone.total)} at the peak of a step"}
    for kind in ("ddp", "fsdp"):
        shared = alone.shared(kind, args.processes)
        facts[f"memory, {kind}"] = (
            f"{_gb(shared.total)} on each of {args.processes} devices, {_gb(shared.exchange)} of "
            "it for the exchange"
        )
    return facts


def _time(config: RunConfig, pace: Pace | None, processes: int) -> dict[str, str]:
    if pace is None:
        return {}
    speed = pace.images_per_second * processes
    facts = {
        "speed": f"{pace.images_per_second:,.4g} images/s on one device, median of {pace.steps} "
        "steps without reading data",
        "utilisation": f"{100 * pace.utilisation:.3g} % of {pace.ceiling / 1e12:.3g} TFLOP/s, "
        "measured in matrix products",
    }
    images, seconds = config.train.images, config.train.images / speed
    limit = math.inf if config.train.minutes is None else 60 * config.train.minutes
    if seconds > limit:
        facts["time"] = f"train.minutes ends it at about {int(limit * speed):,} images"
    else:
        together = f" on {processes} devices that lose nothing" if processes > 1 else ""
        facts["time"] = f"{duration(seconds)} for {images:,} images{together}"
    return facts


def _disk(config: RunConfig, memory: Memory) -> dict[str, str]:
    disk = estimate_disk(config, memory)
    return {"disk": f"{_gb(disk.checkpoint)} a checkpoint, {_gb(disk.most)} at the most"}


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; unknown is no limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    told = Path("/proc/meminfo")
    if device.type == "cpu" and told.exists():
        lines = dict(line.split(":") for line in told.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) << 10
    return 1 << 62


def _gb(count: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
