"""What each way to draw faster gains, exact ones and approximate ones, on one CPU thread.

    python benchmarks/inference.py [--rounds 3] [--only doubled-batch,...] [--out benchmarks]

Baseline and variant are timed in turns, in CPU time, and the median ratio counts: above 1 the
variant is faster. An evaluation is one guided one of a unit, that is 2 x `--unit` images. Weights
are random: they change no time. Writes inference.json and inference.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffit.diffusion.formulation import DDPMConfig, EDMConfig
from diffit.diffusion.guidance import constant, guide, paired
from diffit.generation import generate
from diffit.model import Model, ModelConfig, build_model, fill, matrices_of
from diffit.networks import DiffiTConfig, DiTConfig, LatentDiffiTConfig
from diffit.networks.shared import SIZES
from diffit.nn import attention
from diffit.sampling import SamplingConfig
from networks import processor

Task = Callable[[], object]
Pair = tuple[Task, Task]
LATENT = {"classes": 1000, "learned_variance": True}
NETWORKS = {
    "DiffiT-S/2": LatentDiffiTConfig(**LATENT, **SIZES["S"]._asdict()),
    "DiffiT-B/2": LatentDiffiTConfig(**LATENT, **SIZES["B"]._asdict()),
    "DiT-S/2": DiTConfig(**LATENT, **SIZES["S"]._asdict()),
    "DiffiT, CIFAR-10": DiffiTConfig(classes=10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unit", type=int, default=2)
    parser.add_argument("--only", default=",".join(TRIALS), help="names of the trials")
    parser.add_argument("--networks", default="|".join(NETWORKS), help="names with | between")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in args.networks.split("|"):
        for name in args.only.split(","):
            row = measure(name, network, args)
            rows += [row] if row else []
            print(row, flush=True)
    machine = {"processor": processor(), "threads": 1, "torch": torch.__version__,
               "unit": args.unit, "rounds": args.rounds}  # fmt: skip
    text = json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
    (args.out / "inference.json").write_text(text)
    (args.out / "inference.md").write_text(table(machine, rows))


def measure(name: str, network: str, args: argparse.Namespace) -> dict[str, Any] | None:
    """One row, or None where the trial does not apply to the network."""
    torch.compiler.reset()
    trial = TRIALS[name]
    pair = trial(make(network), args.unit)
    if pair is None:
        return None
    before, after = [], []
    for task in pair:
        task()
    for _ in range(args.rounds):
        before.append(seconds(pair[0]))
        after.append(seconds(pair[1]))
    ratios = [a / b for a, b in zip(before, after, strict=True)]
    return {
        "trial": name,
        "network": network,
        "before_ms": round(statistics.median(before) / args.unit * 1e3, 2),
        "after_ms": round(statistics.median(after) / args.unit * 1e3, 2),
        "gain": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def seconds(task: Task) -> float:
    began = time.process_time()
    task()
    return time.process_time() - began


def make(network: str) -> Model:
    """A model with random weights, none of them zero."""
    config = NETWORKS[network]
    row = DDPMConfig() if config.learned_variance else EDMConfig()
    model = build_model(ModelConfig(network=config, formulation=row))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=source))
    model.network.requires_grad_(False)
    return model


def evaluation(model: Model, unit: int, *, precision: torch.dtype | None = None) -> Task:
    """One guided evaluation of a unit, as `diffit.generation.draw` makes it."""
    x, sigma, label = inputs(model, unit)
    denoise = paired(model.denoiser, label, null=model.classes, weight=constant(2.0))

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision is not None):
            return denoise(x, sigma)

    return run


def inputs(model: Model, unit: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(unit, *model.shape, generator=source).double()
    return x, torch.tensor(2.0, dtype=torch.float64), torch.arange(unit) % model.classes


# -- exact -----------------------------------------------------------------------------------------


def doubled_batch(model: Model, unit: int) -> Pair:
    """Two calls of the network against one of a doubled batch."""
    x, sigma, label = inputs(model, unit)
    null = torch.full_like(label, model.classes)
    twice = guide(
        lambda x, sigma: model.denoiser(x, sigma, label),
        lambda x, sigma: model.denoiser(x, sigma, null),
        weight=constant(2.0),
    )

    def two() -> Tensor:
        with torch.no_grad():
            return twice(x, sigma)

    return two, evaluation(model, unit)


def interval(model: Model, unit: int) -> Pair:
    """Guidance everywhere against guidance within an interval: eight steps of DPM-Solver++."""
    whole = SamplingConfig(sampler="dpmpp-2m", steps=8, guidance=2.0, unit=unit)
    inside = whole.changed(guidance_schedule="interval", guidance_low=0.3, guidance_high=5.0)
    return tuple(
        lambda how=how: generate(model, range(unit), labels=0, settings=how)
        for how in (whole, inside)
    )


class Rows(nn.Module):
    """Rows that were computed before, in place of a projection of the time token."""

    def __init__(self, layer: nn.Module, width: int, unit: int) -> None:
        super().__init__()
        self.rows = layer(torch.randn(2 * unit, width))

    def forward(self, time: Tensor) -> Tensor:
        return self.rows


def time_rows(model: Model, unit: int) -> Pair:
    """As it is, against projections of the time token that cost nothing: the most to be gained."""
    other = make(next(name for name, config in NETWORKS.items() if config == model.config.network))
    for module in list(other.network.modules()):
        for name in ("qkv_time", "modulation"):
            layer = getattr(module, name, None)
            if layer is not None and not isinstance(layer, Rows):
                setattr(module, name, Rows(layer, layer.in_features, unit))
    return evaluation(model, unit), evaluation(other, unit)


def bias_once(model: Model, unit: int) -> Pair | None:
    """Gathering the position bias in every evaluation, against once."""
    if isinstance(model.config.network, DiTConfig):
        return None
    once = evaluation(model, unit)

    def always() -> None:
        attention._cache.entries.clear()
        once()

    return always, once


def bf16(model: Model, unit: int) -> Pair:
    """float32 against bfloat16 autocast."""
    return evaluation(model, unit), evaluation(model, unit, precision=torch.bfloat16)


def bf16_matrices(model: Model, unit: int) -> Pair:
    """bfloat16 autocast of float32 weights, against weights that are kept in bfloat16."""
    low = build_model(model.config)
    fill(low, model.network.state_dict().items(), matrices=torch.bfloat16)
    assert matrices_of(low.network)
    pair = tuple(evaluation(m, unit, precision=torch.bfloat16) for m in (model, low))
    assert torch.equal(pair[0](), pair[1]())
    return pair


def compiled(model: Model, unit: int) -> Pair:
    """Eager against `torch.compile` of every block."""
    other = make(next(name for name, config in NETWORKS.items() if config == model.config.network))
    for block in other.network.blocks():
        block.compile()
    return evaluation(model, unit), evaluation(other, unit)


def channels_last(model: Model, unit: int) -> Pair | None:
    """Convolutions' weights channels first, against channels last."""
    if not isinstance(model.config.network, DiffiTConfig):
        return None
    other = make("DiffiT, CIFAR-10")
    other.network.to(memory_format=torch.channels_last)
    return evaluation(model, unit), evaluation(other, unit)


# -- approximate -----------------------------------------------------------------------------------


def approximately(**changes: Any) -> Callable[[Model, int], Pair]:
    """Eight steps of DPM-Solver++, exactly against with `changes`."""

    def pair(model: Model, unit: int) -> Pair:
        exact = SamplingConfig(sampler="dpmpp-2m", steps=8, guidance=2.0, unit=unit)
        return tuple(
            lambda how=how: generate(model, range(unit), labels=0, settings=how)
            for how in (exact, exact.changed(**changes))
        )

    return pair


TRIALS: dict[str, Callable[[Model, int], Pair | None]] = {
    "doubled-batch": doubled_batch,
    "interval": interval,
    "time-rows": time_rows,
    "bias-once": bias_once,
    "bf16": bf16,
    "bf16-matrices": bf16_matrices,
    "compile": compiled,
    "channels-last": channels_last,
    "guidance-every-2": approximately(guidance_every=2),
    "guidance-every-4": approximately(guidance_every=4),
    "reuse-every-2": approximately(reuse_every=2),
    "reuse-every-3": approximately(reuse_every=3, reuse_share=0.8),
    "both": approximately(reuse_every=3, reuse_share=0.8, guidance_every=4),
}


def table(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Gains as Markdown: a row for each trial, a column for each network."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = f"Times as fast: {facts}. `python benchmarks/inference.py` measures again.\n\n"
    text += "| trial | " + " | ".join(networks) + " |\n|---|" + "--:|" * len(networks) + "\n"
    gains = {(row["trial"], row["network"]): f"{row['gain']:.2f}" for row in rows}
    for trial in dict.fromkeys(row["trial"] for row in rows):
        text += f"| {trial} | " + " | ".join(gains.get((trial, n), "") for n in networks) + " |\n"
    return text


if __name__ == "__main__":
    main()
