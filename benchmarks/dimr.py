"""Time and memory of DiMR against a straightforward rendition of the same formulas.

    python benchmarks/dimr.py [--threads 1] [--rounds 5] [--batch 8] [--out benchmarks]

A DiMR of widths 192 and 96 at 32 x 32 x 4 with classes. The rendition works on the same weights
with ordinary functions of PyTorch: softmax attention written out, time-dependent vectors for every
image and norm, ConvNeXt on contiguous maps, and the features of every branch joined, the last one's
too. That both compute the same is checked first. A forward pass and a training step (loss of both
resolutions, gradients, AdamW), in turns within one run. Peak memory is that of a fresh process,
above its libraries. Then two choices inside: the memory order of a ConvNeXt block, and two forms of
depth to space. Writes dimr.json and prints a table.
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
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffit.networks.count import count_macs, count_parameters
from diffit.networks.dimr import DiMR, DiMRConfig, GatedBlock, to_map
from networks import Task, interleave, peak_so_far, processor

CONFIG = DiMRConfig(classes=1000, widths=(192, 96), depths=(7, 5), heads=4)
SETTINGS = ["eager", "diffit"]
TASKS = ["forward", "training"]


class EagerDiMR(nn.Module):
    """The paper's formulas, with the weights of one of ours."""

    def __init__(self, ours: DiMR) -> None:
        super().__init__()
        self.config, self.ours = ours.config, ours
        self.weights = dict(ours.named_parameters())

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        return self.pyramid(x, time, label)[-1]

    def pyramid(self, x: Tensor, time: Tensor, label: Tensor) -> list[Tensor]:
        tau, features, predictions = time / 4, x, []
        for branch, width in enumerate(self.config.widths):
            name, stride = f"branches.{branch}", self.config.stride(branch)
            rows, columns = self.config.grid(branch)
            patch = self.weights[f"{name}.patch.weight"]
            kernel = patch.view(width, -1, stride, stride)
            image = F.conv2d(x, kernel, self.weights[f"{name}.patch.bias"], stride=stride)
            tokens = image.flatten(2).mT + self.weights[f"{name}.position.table"]
            if branch:
                cells = self.norm(f"{name}.upsample.norm1", features, tau)
                cells = self.linear(f"{name}.upsample.reduce", cells)
                cells = cells.view(len(x), rows // 2, columns // 2, 2, 2, width)
                fine = cells.permute(0, 1, 3, 2, 4, 5).reshape(len(x), rows * columns, width)
                tokens = tokens + self.norm(f"{name}.upsample.norm2", fine, tau)
            else:
                row = self.weights[f"{name}.label.table.weight"][label]
                tokens = torch.cat([row[:, None], tokens], dim=1)
            outputs = self.column(name, branch, tokens, tau)
            outputs = outputs if branch else [each[:, 1:] for each in outputs]
            features = torch.cat(outputs, dim=-1)
            last = self.norm(f"{name}.norm", outputs[-1], tau)
            last = last.mT.reshape(len(x), width, rows, columns)
            weight, bias = (self.weights[f"{name}.head.{kind}"] for kind in ("weight", "bias"))
            predictions.append(F.conv2d(last, weight, bias, padding=1))
        return predictions

    def column(self, name: str, branch: int, tokens: Tensor, tau: Tensor) -> list[Tensor]:
        half, outputs = self.config.depths[branch] // 2, [tokens]
        skips: list[Tensor] = []
        for i in range(2 * half + 1):
            if i > half:
                both = torch.cat([tokens, skips.pop()], dim=-1)
                tokens = self.linear(f"{name}.merge.{i - half - 1}", both)
            block = f"{name}.column.{i}"
            mixed = self.convolve if branch else self.attend
            tokens = tokens + mixed(block, branch, tokens, tau)
            normed = self.norm(f"{block}.norm2", tokens, tau)
            gate = F.gelu(self.linear(f"{block}.glu.gate", normed))
            hidden = gate * self.linear(f"{block}.glu.up", normed)
            tokens = tokens + self.linear(f"{block}.glu.down", hidden)
            skips += [tokens] if i < half else []
            outputs.append(tokens)
        return outputs

    def attend(self, block: str, _: int, tokens: Tensor, tau: Tensor) -> Tensor:
        qkv = self.linear(f"{block}.attention.qkv", self.norm(f"{block}.norm1", tokens, tau))
        q, k, v = rearrange(qkv, "b n (s h d) -> s b h n d", s=3, h=self.config.heads)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.linear(f"{block}.attention.out", rearrange(weights @ v, "b h n d -> b n (h d)"))

    def convolve(self, block: str, branch: int, tokens: Tensor, _: Tensor) -> Tensor:
        rows, columns = self.config.grid(branch)
        image = tokens.mT.reshape(len(tokens), -1, rows, columns)
        weight, bias = (self.weights[f"{block}.conv.{kind}"] for kind in ("weight", "bias"))
        padding, width = self.config.kernel // 2, tokens.shape[-1]
        return F.conv2d(image, weight, bias, padding=padding, groups=width).flatten(2).mT

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor, tau: Tensor) -> Tensor:
        scale = self.vector(f"{name}.scale", tau)
        if f"{name}.shift.low" in self.weights:
            return F.layer_norm(x, x.shape[-1:]) * scale + self.vector(f"{name}.shift", tau)
        return x / (x.square().mean(dim=-1, keepdim=True).sqrt() + 1e-8) * scale

    def vector(self, name: str, tau: Tensor) -> Tensor:
        high, low = self.weights[f"{name}.high"], self.weights[f"{name}.low"]
        slope, offset = self.weights[f"{name}.slope"], self.weights[f"{name}.offset"]
        blend = torch.sigmoid((1 + slope) * tau[:, None] + offset)
        return (low + blend * (high - low))[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="turns; the median counts")
    parser.add_argument("--batch", type=int, default=8)
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
        runs = {setting: prepare(setting, task, args.batch) for setting in SETTINGS}
        seconds = interleave(runs, rounds=args.rounds, clock=clock)
        for setting, spent in seconds.items():
            row = {"task": task, "setting": setting, "ms_per_image": 1e3 * spent / args.batch}
            row |= {"speed": seconds["eager"] / spent, "peak_mib": peak(setting, task, args)}
            rows.append(row)
            print(row, flush=True)
    inside = interleave(
        convnext(args.batch) | depth_to_space(args.batch), rounds=4 * args.rounds, clock=clock
    )
    found = {
        "machine": {
            "processor": processor(), "threads": args.threads, "torch": torch.__version__,
            "batch": args.batch, "clock": args.clock, "load_before": load,
        },
        "largest_difference": difference,
        "rows": rows,
        "inside_ms_per_image": {n: 1e3 * s / args.batch for n, s in inside.items()},
    }  # fmt: skip
    (args.out / "dimr.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


def build(setting: str) -> Any:
    """One of the two renditions, with weights that do not depend on which."""
    torch.manual_seed(0)
    ours = DiMR(CONFIG)
    with torch.no_grad():  # so that the noise level acts, as in a trained network
        for name, parameter in ours.named_parameters():
            if name.rpartition(".")[2] in ("high", "low", "slope", "offset"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return ours if setting == "diffit" else EagerDiMR(ours)


def batch_of(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *CONFIG.shape, generator=generator)
    return x, torch.linspace(-4, 4, count), torch.arange(count)


@torch.no_grad()
def check() -> float:
    """The largest difference of the two, relative to the largest output; far too large is fatal."""
    ours, eager = (build(setting).pyramid(*batch_of(2)) for setting in ("diffit", "eager"))
    difference = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, eager, strict=True)
    )
    if not difference < 1e-5:
        raise SystemExit(f"the two renditions differ by {difference:.2g}: they must be the same")
    return difference


def prepare(setting: str, task: str, batch: int) -> Task:
    """A network with one task to be timed."""
    network, (x, when, label) = build(setting), batch_of(batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    targets = [2 * F.avg_pool2d(x, 2), x]

    def forward() -> None:
        with torch.inference_mode():
            network(x, when, label)

    def training() -> None:
        optimiser.zero_grad()
        coarse, fine = (
            (prediction - target).square().mean()
            for prediction, target in zip(network.pyramid(x, when, label), targets, strict=True)
        )
        (coarse / 4 + fine).backward()
        optimiser.step()

    return forward if task == "forward" else training


def convnext(batch: int) -> dict[str, Task]:
    """The depthwise convolution of the fine branch on tokens, in two orders of memory."""
    torch.manual_seed(0)
    grid, width = CONFIG.grid(1), CONFIG.widths[1]
    tokens, conv = torch.randn(batch, grid[0] * grid[1], width), GatedBlock(CONFIG, width, grid)
    last = to_map(tokens, grid)
    with torch.no_grad():
        same = torch.allclose(conv.conv(last), conv.conv(last.contiguous()), atol=1e-5)
    if not same:
        raise SystemExit("the two orders of memory give different results")

    def run(order: torch.memory_format) -> Task:
        def timed() -> None:
            with torch.inference_mode():
                image = conv.conv(last.contiguous(memory_format=order))
                image.permute(0, 2, 3, 1).contiguous()

        return timed

    return {
        "convolution, channels last": run(torch.channels_last),
        "convolution, contiguous": run(torch.contiguous_format),
    }


def depth_to_space(batch: int) -> dict[str, Task]:
    """The upsampler's linear layer and what spreads its output, tokens to tokens, in two forms."""
    torch.manual_seed(0)
    (rows, columns), width = CONFIG.grid(0), CONFIG.widths[1]
    features = CONFIG.widths[0] * (CONFIG.depths[0] + 1)
    tokens, layer = torch.randn(batch, rows * columns, features), nn.Linear(features, 4 * width)
    permuted = nn.Linear(features, 4 * width)
    with torch.no_grad():  # pixel_shuffle reads (channel, row, column), not (row, column, channel)
        permuted.weight.copy_(rearrange(layer.weight, "(p c) f -> (c p) f", p=4))
        permuted.bias.copy_(rearrange(layer.bias, "(p c) -> (c p)", p=4))

    @torch.inference_mode()
    def by_rearrange() -> Tensor:
        pattern = "b (h w) (p q c) -> b (h p w q) c"
        return rearrange(layer(tokens), pattern, h=rows, w=columns, p=2, q=2)

    @torch.inference_mode()
    def by_shuffle() -> Tensor:
        image = to_map(permuted(tokens), (rows, columns))
        return F.pixel_shuffle(image, 2).flatten(2).mT.contiguous()

    if not torch.allclose(by_rearrange(), by_shuffle(), atol=1e-5):
        raise SystemExit("the two forms of depth to space give different results")
    return {"upsampling, rearrange": by_rearrange, "upsampling, pixel_shuffle": by_shuffle}


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


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    with torch.device("meta"):
        size = count_parameters(DiMR(CONFIG))
    text = f"DiMR on the CPU: {size:,} parameters, {count_macs(CONFIG) / 1e9:.2f} GMAC; "
    text += ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    text += f"; largest difference {found['largest_difference']:.1g}.\n\n"
    text += "| task | setting | ms / image | speed, eager = 1 | peak MiB |\n|---|---|--:|--:|--:|\n"
    for row in found["rows"]:
        text += f"| {row['task']} | {row['setting']} | {row['ms_per_image']:.1f} "
        text += f"| {row['speed']:.2f} | {row['peak_mib']:.0f} |\n"
    for name, spent in found["inside_ms_per_image"].items():
        text += f"| inside | {name} | {spent:.2f} | | |\n"
    return text


if __name__ == "__main__":
    main()
