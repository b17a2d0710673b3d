"""Time and memory of U-ViT against a straightforward rendition of the same formulas.

    python benchmarks/uvit.py [--threads 1] [--rounds 7] [--batch 4] [--out benchmarks]

U-ViT-S/2 at 32 x 32 x 4 with classes. The rendition has the same weights in ordinary layers of
PyTorch and explicit softmax attention; that both compute the same is checked first. A forward pass
and a training step (loss, gradients, AdamW), in turns within one run, in float32 and under bfloat16
autocast, with and without activation checkpointing. Peak memory is that of a fresh process, above
its libraries. Writes uvit.json and uvit.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffit.networks.count import count_macs, count_parameters
from diffit.networks.uvit import UViT, UViTConfig
from networks import Task, interleave, peak_so_far, processor

CONFIG = UViTConfig(classes=1000, depth=13, width=512, heads=8)
SETTINGS = ["eager", "diffit", "eager bf16", "diffit bf16", "diffit bf16 checkpointed"]
TASKS = ["forward", "training"]


class EagerBlock(nn.Module):
    """A block as the paper's figure has it."""

    def __init__(self, width: int, heads: int, *, skip: bool) -> None:
        super().__init__()
        self.heads = heads
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip is not None and skip is not None:
            x = self.skip(torch.cat([x, skip], dim=-1))
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class EagerUViT(nn.Module):
    """The same formulas in ordinary layers, with the weights of one of ours."""

    def __init__(self, ours: UViT) -> None:
        super().__init__()
        config, self.config = ours.config, ours.config
        width = config.width
        self.patch = nn.Conv2d(config.channels, width, config.patch, stride=config.patch)
        self.position = nn.Parameter(torch.zeros(2 + config.grid[0] * config.grid[1], width))
        self.label = nn.Embedding(config.classes + 1, width)
        half = config.depth // 2
        self.down = nn.ModuleList(
            EagerBlock(width, config.heads, skip=False) for _ in range(half + 1)
        )
        self.up = nn.ModuleList(EagerBlock(width, config.heads, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.channels * config.patch**2)
        self.conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self._take(ours)

    @torch.no_grad()
    def _take(self, ours: UViT) -> None:
        theirs = dict(ours.state_dict())
        blocks = {f"down.{i}": f"down.{i}" for i in range(len(ours.down))}
        blocks |= {f"down.{len(ours.down)}": "middle"}
        blocks |= {f"up.{i}": f"up.{i}" for i in range(len(ours.up))}
        layers = {"qkv": "attention.qkv", "out": "attention.out", "mlp.0": "mlp.up"}
        layers |= {"mlp.2": "mlp.down", "norm1": "norm1", "norm2": "norm2", "skip": "skip"}
        for name, tensor in self.state_dict().items():
            block, _, rest = name.rpartition(".")
            here = next((b for b in blocks if name.startswith(b + ".")), None)
            if here is not None:
                layer = block.removeprefix(here + ".")
                source = theirs[f"{blocks[here]}.{layers[layer]}.{rest}"]
            else:
                source = theirs["label.table.weight" if block == "label" else name]
            tensor.copy_(source.reshape(tensor.shape))

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        width, p = self.config.width, self.config.patch
        frequency = 10000 ** (-torch.arange(width // 2, device=x.device) / (width // 2))
        angle = time[:, None] * frequency
        level = torch.cat([angle.cos(), angle.sin()], dim=-1)
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.label(label)[:, None], level[:, None], tokens], dim=1)
        tokens, skips = tokens + self.position, []
        for block in self.down:
            tokens = block(tokens)
            skips.append(tokens)
        skips.pop()
        for block in self.up:
            tokens = block(tokens, skips.pop())
        tokens = self.head(self.norm(tokens))[:, 2:]
        rows, columns = self.config.grid
        cells = tokens.reshape(len(x), rows, columns, p, p, -1)
        image = cells.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, rows * p, columns * p)
        return self.conv(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="turns; the median counts")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu", help="cpu when busy")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_here(*args.peak, batch=args.batch))
        return
    load = round(os.getloadavg()[0], 1)
    difference = check()
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    rows = []
    for task in TASKS:
        runs = {s: prepare(s, task, args.batch) for s in SETTINGS if fits(s, task)}
        seconds = interleave(runs, rounds=args.rounds, clock=clock)
        for setting, spent in seconds.items():
            ours = seconds["eager bf16" if "bf16" in setting else "eager"] / spent
            row = {"task": task, "setting": setting, "ms_per_image": 1e3 * spent / args.batch}
            rows.append(row | {"speed": ours, "peak_mib": peak(setting, task, args)})
            print(rows[-1], flush=True)
    machine = {"processor": processor(), "threads": args.threads, "torch": torch.__version__}
    machine |= {"batch": args.batch, "clock": args.clock, "load_before": load}
    found = {"machine": machine, "largest_difference": difference, "rows": rows}
    (args.out / "uvit.json").write_text(json.dumps(found, indent=2) + "\n")
    (args.out / "uvit.md").write_text(table(machine, rows))
    print(table(machine, rows))


def fits(setting: str, task: str) -> bool:
    """Checkpointing is for training."""
    return "checkpointed" not in setting or task == "training"


def build(setting: str) -> nn.Module:
    """One of the two renditions, with weights that do not depend on which."""
    torch.manual_seed(0)
    ours = UViT(CONFIG)
    ours.activation_checkpointing = "checkpointed" in setting
    return ours if "diffit" in setting else EagerUViT(ours)


def batch_of(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *CONFIG.shape, generator=generator)
    return x, torch.linspace(0, 999, count), torch.arange(count)


@torch.no_grad()
def check() -> float:
    """The largest difference of the two, relative to the largest output; far too large is fatal."""
    ours, eager = (build(setting)(*batch_of(2)) for setting in ("diffit", "eager"))
    difference = float((ours - eager).abs().max() / eager.abs().max())
    if not difference < 1e-5:
        raise SystemExit(f"the two renditions differ by {difference:.2g}: they must be the same")
    return difference


def prepare(setting: str, task: str, batch: int) -> Task:
    """A network with one task to be timed."""
    network, (x, time, label) = build(setting), batch_of(batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    precision = torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in setting)

    def forward() -> None:
        with torch.inference_mode(), precision:
            network(x, time, label)

    def training() -> None:
        optimiser.zero_grad()
        with precision:
            loss = (network(x, time, label).float() - x).square().mean()
        loss.backward()
        optimiser.step()

    return forward if task == "forward" else training


def peak(setting: str, task: str, args: argparse.Namespace) -> float:
    """MiB that a fresh process needs for the task, weights included."""
    command = [sys.executable, __file__, "--peak", setting, task, "--batch", str(args.batch)]
    command += ["--threads", str(args.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_here(setting: str, task: str, *, batch: int) -> float:
    """MiB above what this process held before it built the network."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak, which exec inherits
    before = peak_so_far()
    run = prepare(setting, task, batch)
    for _ in range(2):
        run()
    return peak_so_far() - before


def table(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    with torch.device("meta"):
        size = count_parameters(UViT(CONFIG))
    text = "U-ViT-S/2 on the CPU: " + ", ".join(f"{key} {value}" for key, value in machine.items())
    text += f". {size:,} parameters, {count_macs(CONFIG) / 1e9:.2f} GMAC. "
    text += "`python benchmarks/uvit.py` measures again.\n\n"
    text += "| task | setting | ms / image | speed, eager = 1 | peak MiB |\n|---|---|--:|--:|--:|\n"
    for row in rows:
        text += f"| {row['task']} | {row['setting']} | {row['ms_per_image']:.1f} "
        text += f"| {row['speed']:.2f} | {row['peak_mib']:.0f} |\n"
    return text


if __name__ == "__main__":
    main()
