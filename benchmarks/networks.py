"""Time and memory of the networks against diffusers' DiT and against the machine's own floor.

    python benchmarks/networks.py [--threads 2] [--rounds 7] [--out benchmarks]

Latent DiffiT-S/2 and DiT-S/2 at 32x32x4 against diffusers' `DiTTransformer2DModel` of the same
shape (extra `bench`), in turns within one run: a forward pass, a training step (loss, gradients,
AdamW) and a guided DDIM step, in float32 and under bfloat16 autocast. The floor is the counted
floating-point operations over the rate of a large matrix product, measured in the same turns: by
`torch.mm`, and, in brackets, by the fastest product that PyTorch has here, which in float32 on
AMD's CPUs is a convolution. Peak memory is that of a fresh process, above its libraries. Writes
networks.json and networks.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.diffusion.guidance import constant, paired
from diffit.diffusion.loss import denoising_loss
from diffit.networks import DiffiTConfig, DiTConfig, LatentDiffiTConfig, build_network
from diffit.networks.count import count_macs, count_parameters
from diffit.networks.shared import SIZES
from diffit.nn.linear import linear
from diffit.samplers.ddpm import ddim

SHAPE = {"classes": 1000, "learned_variance": True, **SIZES["S"]._asdict()}
CONFIGS = {
    "DiffiT-S/2": LatentDiffiTConfig(**SHAPE),
    "DiT-S/2": DiTConfig(**SHAPE),
    "diffusers DiT-S/2": DiTConfig(**SHAPE),
    "DiffiT, CIFAR-10": DiffiTConfig(classes=10, learned_variance=True),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COST = {"forward": 1, "training": 3, "guided": 2}  # forward passes that a task is worth
SIDE = 1536  # of the matrices that set the floor
Task = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="turns; the median counts")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu when busy")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_here(*args.peak, batch=args.batch))
        return
    load = round(os.getloadavg()[0], 1)
    rows = [row for precision in DTYPES for task in COST for row in measure(precision, task, args)]
    machine = {
        "processor": processor(),
        "threads": args.threads,
        "torch": torch.__version__,
        "batch": args.batch,
        "clock": args.clock,
        "load_before": load,
    }
    text = json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n"
    (args.out / "networks.json").write_text(text)
    (args.out / "networks.md").write_text(table(machine, rows))
    print(table(machine, rows))


def measure(precision: str, task: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each network: the median of interleaved turns."""
    runs = {name: prepare(name, precision, task, args.batch) for name in CONFIGS}
    products = matrix_products(DTYPES[precision])
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds = interleave(runs | products, rounds=args.rounds, clock=clock)
    rates = {name: 2 * SIDE**3 / seconds[name] for name in products}
    rows = []
    for name, config in CONFIGS.items():
        flops = 2 * count_macs(config) * COST[task] * args.batch
        rows.append(
            {
                "precision": precision,
                "task": task,
                "network": name,
                "ms_per_image": seconds[name] / args.batch * 1e3,
                "over_floor": seconds[name] * rates["torch.mm"] / flops,
                "over_fastest_floor": seconds[name] * max(rates.values()) / flops,
                "gflop_per_image": flops / args.batch / 1e9,
                "gflops_per_s": {k: v / 1e9 for k, v in rates.items()},
                "peak_mib": peak(name, precision, task, args),
            }
        )
        print(*(f"{v:.3g}" if isinstance(v, float) else v for v in rows[-1].values()), flush=True)
    return rows


def interleave(
    runs: dict[str, Task], *, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of each, taken in turns, so that a busy neighbour disturbs all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_products(dtype: torch.dtype) -> dict[str, Task]:
    """The ways in which PyTorch multiplies large matrices."""
    a, b = torch.randn(SIDE, SIDE, dtype=dtype), torch.randn(SIDE, SIDE, dtype=dtype)
    return {"torch.mm": lambda: torch.mm(a, b), "diffit.nn.linear": lambda: linear(a, b, None)}


def prepare(name: str, precision: str, task: str, batch: int) -> Task:
    """A network with one task to be timed."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    network = Diffusers(config) if name.startswith("diffusers") else build_network(config)
    row = build_formulation(DDPMConfig(learned_variance=True))
    denoiser = Denoiser(network.train(task == "training"), row)
    x, label = torch.randn(batch, *config.shape), torch.arange(batch)
    run = {"forward": forward, "training": training, "guided": guided}[task](denoiser, x, label)

    def timed() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            run()

    return timed


def forward(denoiser: Denoiser, x: Tensor, label: Tensor) -> Task:
    sigma = torch.ones(len(x))

    def run() -> None:
        with torch.inference_mode():
            denoiser.raw(x, sigma, label)

    return run


def training(denoiser: Denoiser, x: Tensor, label: Tensor) -> Task:
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, fused=True)
    sigma, noise = torch.ones(len(x), dtype=torch.float64), torch.randn_like(x)

    def run() -> None:
        optimiser.zero_grad()
        total = denoising_loss(denoiser, x, noise, sigma, label).total.mean()
        with torch.autocast("cpu", enabled=False):
            total.backward()
            optimiser.step()

    return run


def guided(denoiser: Denoiser, x: Tensor, label: Tensor) -> Task:
    denoise = paired(denoiser, label, null=denoiser.network.config.classes, weight=constant(4.0))
    sigmas = torch.tensor([2.0, 1.0], dtype=torch.float64)

    def run() -> None:
        with torch.inference_mode():
            ddim(denoise, x.double(), sigmas)

    return run


class Diffusers(nn.Module):
    """diffusers' DiT behind the call of our networks."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.config = config
        self.model = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            in_channels=config.channels,
            out_channels=2 * config.channels,
            num_layers=config.depth,
            sample_size=config.shape[1],
            patch_size=config.patch,
            num_embeds_ada_norm=config.classes,
            activation_fn="gelu-approximate",
        )

    def forward(
        self, x: Tensor, time: Tensor, label: Tensor, image: None, *, augment: None, keys: None
    ) -> Tensor:
        out: Tensor = self.model(x, time, label).sample
        return out


def peak(name: str, precision: str, task: str, args: argparse.Namespace) -> float:
    """MiB that a fresh process needs for the task, weights included."""
    command = [sys.executable, __file__, "--peak", name, precision, task]
    command += ["--batch", str(args.batch), "--threads", str(args.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_here(name: str, precision: str, task: str, *, batch: int) -> float:
    """MiB above what this process held before it built the network."""
    if name.startswith("diffusers"):
        from diffusers import DiTTransformer2DModel as _
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak, which exec inherits
    before = peak_so_far()
    run = prepare(name, precision, task, batch)
    for _ in range(2):
        run()
    return peak_so_far() - before


def peak_so_far() -> float:
    """MiB of memory that this process held at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), "unknown")


def table(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = f"Networks on the CPU: {facts}. `python benchmarks/networks.py` measures again.\n\n"
    text += "| precision | task | network | ms / image | time over floor | "
    text += "time per FLOP, diffusers = 1 | peak MiB |\n|---|---|---|--:|--:|--:|--:|\n"
    for row in rows:
        same = [r for r in rows if (r["precision"], r["task"]) == (row["precision"], row["task"])]
        other = next(r for r in same if r["network"].startswith("diffusers"))
        text += (
            f"| {row['precision']} | {row['task']} | {row['network']} | {row['ms_per_image']:.1f} "
            f"| {row['over_floor']:.2f} ({row['over_fastest_floor']:.2f}) "
            f"| {row['over_floor'] / other['over_floor']:.2f} | {row['peak_mib']:.0f} |\n"
        )
    sizes = []
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            network = build_network(config)
        sizes.append(f"{name}: {count_macs(config) / 1e9:.2f} GMAC, {count_parameters(network):,}")
    text += "\nOne forward pass and weights (those of diffusers' as ours): " + "; ".join(sizes)
    rates = {r["precision"]: r["gflops_per_s"] for r in rows}
    speeds = (f"{p} " + ", ".join(f"{k} {v:.0f}" for k, v in r.items()) for p, r in rates.items())
    return text + ". Large products, GFLOP/s: " + "; ".join(speeds) + ".\n"


if __name__ == "__main__":
    main()
