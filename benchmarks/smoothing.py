"""What certification costs beyond its networks: copies a second against images a second.

    python benchmarks/smoothing.py [--copies 512] [--rounds 9]

The classifier alone, the denoiser alone and the certification of images, all of the same batch
size and taking turns, so that a busy machine disturbs all three alike; CPU time of one thread.
The overhead is what certification takes beyond denoising and classifying: noise, sums, votes,
bounds. Weights are random: the time does not depend on them.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffit.explain.fitting import smoothing_of
from diffit.explain.smoothed import certify
from diffit.explain.smoothing import Smoothed
from diffit.explain.vit import ViTConfig, build_vit
from diffit.model import Model, build_model
from diffit.networks.count import count_parameters
from diffit.training.presets import read_config

OUT = Path(__file__).with_suffix(".json")
UNIT = 64
PAIRS = {
    "digits, 1 x 8 x 8": (
        "diffit-digits",
        ViTConfig(size=8, channels=1, patch=2, width=64, depth=4, heads=4, classes=10),
    ),
    "patches, 3 x 32 x 32": (
        "diffit-patches",
        ViTConfig(size=32, channels=3, patch=4, width=192, depth=6, heads=3, classes=10),
    ),
}


@torch.no_grad()
def main() -> None:
    """Time each pair, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=512, help="of a round")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: measure(*pair, args.copies, args.rounds) for name, pair in PAIRS.items()}
    for name, row in rows.items():
        print(f"{name}: " + ", ".join(f"{key} {value:,}" for key, value in row.items()))
    result = {
        "command": f"python benchmarks/smoothing.py --copies {args.copies} --rounds {args.rounds}",
        "unit": UNIT,
        "pairs": rows,
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, one thread",
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(preset: str, config: ViTConfig, copies: int, rounds: int) -> dict[str, float]:
    """Images or copies a second of one pair, and the overhead."""
    model = build_model(read_config(preset).model)
    vit = build_vit(config, seed=0).eval()
    smoothed = Smoothed(vit, smoothing_of(model, 0.5, unit=UNIT))
    image = torch.rand(model.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = smoothed.smoothing.noisy(image, 0, "estimation", range(UNIT))
    seconds: dict[str, list[float]] = {"classifier": [], "denoiser": [], "certification": []}
    for number in range(rounds):
        seconds["classifier"].append(timed(lambda: vit(batch), copies // UNIT))
        seconds["denoiser"].append(timed(lambda: denoise(model, batch), copies // UNIT))
        seconds["certification"].append(certified(smoothed, image, number, copies))
    rate = {name: UNIT / statistics.median(each) for name, each in seconds.items()}
    parts = [sum(each) for each in zip(seconds["classifier"], seconds["denoiser"], strict=True)]
    overhead = [
        1 - part / whole for part, whole in zip(parts, seconds["certification"], strict=True)
    ]
    return {
        "denoiser parameters": count_parameters(model.network),
        "classifier parameters": count_parameters(vit),
        "classifier, images a second": round(rate["classifier"]),
        "denoiser, images a second": round(rate["denoiser"]),
        "certification, copies a second": round(rate["certification"]),
        "overhead, percent": round(100 * statistics.median(overhead), 1),
        "overhead of the worst round, percent": round(100 * max(overhead), 1),
    }


def denoise(model: Model, batch: Tensor) -> Tensor:
    """One estimate of the clean images."""
    clean: Tensor = model.denoiser(batch, torch.tensor(0.5, dtype=torch.float64))
    return clean


def timed(function: Callable[[], object], times: int) -> float:
    """CPU seconds of one call."""
    function()
    start = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - start) / times


def certified(smoothed: Smoothed, image: Tensor, number: int, copies: int) -> float:
    """CPU seconds for each unit of copies that a certification has drawn."""
    drawn: list[int] = []
    start = time.process_time()
    certify(smoothed, image, n0=UNIT, n=copies, number=number, tell=drawn.append)
    return (time.process_time() - start) / sum(drawn) * UNIT


if __name__ == "__main__":
    main()
