"""Images per second of two processes against one: `python benchmarks/parallel.py [--out FILE]`.

Each process has one thread, and each gets its own core of an otherwise idle machine; the ways are
taken in turns, and the median turn of each counts. A step is a whole one: forward and backward
pass, exchange of gradients, optimiser, average. Images are drawn beforehand. It takes about six
minutes.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from diffit.data.loader import Batch
from diffit.distributed import barrier, join, rank, world
from diffit.training.inputs import draw_inputs
from diffit.training.parallel import ParallelConfig
from diffit.training.prepare import build_objective
from diffit.training.presets import read_config
from diffit.training.settings import RunConfig
from diffit.training.state import fresh_state

PRESET = "diffit-cifar10-small"
BATCH = 16
STEPS = 6
TURNS = 5
WAYS = {"alone": 1, "ddp": 2, "fsdp": 2}


def main() -> None:
    """The table, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--batch", type=int, default=BATCH, help="of all processes together")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.preset, args.batch, args.way)))
        return
    turns = [{way: launch(args, way) for way in WAYS} for _ in range(TURNS)]
    middle = {way: statistics.median(turn[way] for turn in turns) for way in WAYS}
    rows = [
        {"way": way, "processes": count, "images_per_second": round(middle[way], 2),
         "gain": round(middle[way] / middle["alone"], 3)}
        for way, count in WAYS.items()
    ]  # fmt: skip
    for row in rows:
        print(
            f"{row['way']:6} {row['processes']} x 1 thread  "
            f"{row['images_per_second']:8.2f} images/s  {row['gain']:.2f} x"
        )
    if args.out:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(),
                   "torch": torch.__version__, "load": round(os.getloadavg()[0], 1)}  # fmt: skip
        content = {"preset": args.preset, "batch": args.batch, "machine": machine, "rows": rows}
        args.out.write_text(json.dumps(content, indent=2) + "\n")


def launch(args: argparse.Namespace, way: str) -> float:
    """Images per second of one turn, in processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--preset", args.preset, "--batch", str(args.batch), "--way", way]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *words],
            env={**os.environ, "RANK": str(number), "WORLD_SIZE": str(WAYS[way]),
                 "LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                 "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, text=True,
        )
        for number in range(WAYS[way])
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{way} failed")
    return float(json.loads(said[0]))


def measure(preset: str, batch: int, way: str) -> float:
    """Images per second of the whole group, after two steps of warming up."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank()]})
    torch.set_num_threads(1)
    join()
    config = settings(preset, batch, way)
    state = fresh_state(config, torch.device("cpu"))
    objective = build_objective(state, config)
    number = torch.arange(rank(), batch, world())
    image = torch.zeros(len(number), *state.model.shape, dtype=torch.uint8)
    inputs = draw_inputs(Batch(image, None, number), state.model, seed=0)
    for step in range(2 + STEPS):
        if step == 2:
            barrier()
            started = time.perf_counter()
        found = objective.gradients(inputs, batch=batch)
        objective.clip(found.norm, config.train.clip)
        state.optimizer.step()
        state.averages.update(batch=batch, after=(step + 1) * batch)
    barrier()
    return STEPS * batch / (time.perf_counter() - started)


def settings(preset: str, batch: int, way: str) -> RunConfig:
    """The preset with another batch, shared out in the given way."""
    config = read_config(preset)
    parallel = ParallelConfig(kind="fsdp" if way == "fsdp" else "ddp")
    train = config.train.model_copy(update={"batch": batch, "parallel": parallel})
    return config.model_copy(update={"train": train})


if __name__ == "__main__":
    main()
