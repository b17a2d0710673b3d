"""Products of packed ternary layers on one CPU, beside those that they replace.

    python benchmarks/ternary.py [--threads 1] [--rounds 7] [--out benchmarks]

Matrices of the feed-forward network of TerDiT-4.2B and of a DiT-XL/2, 1 to 2048 rows of float32.
All ways give the scaled product with a bias, in float32 where not named otherwise; "int8" and ours
round the rows to 8 bits on the way, which is part of their time. CPU time, the least of some
rounds in turns; threads share it, so that with more than one wall-clock time is taken. For one row
each round goes through copies of the matrix that no cache holds, as the layers of a large network
do, and the floor is the time to read the packed bytes once. Writes ternary.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.nn.kernels import native
from diffit.nn.kernels.rounded import integer_product, round_rows
from diffit.nn.packed import PackedTernary, keep_weights_
from diffit.nn.tiles import tiles_to_rows
from networks import processor

MATRICES = {
    "4.2B FFN up": (8192, 3072),
    "4.2B FFN down": (3072, 8192),
    "XL/2 attention out": (1152, 1152),
    "XL/2 qkv": (3456, 1152),
    "XL/2 FFN up": (4608, 1152),
    "XL/2 FFN down": (1152, 4608),
}
"""Name -> (outputs, inputs)."""
ROWS = (1, 64, 512, 2048)
COLD_BYTES = 400 << 20
"""More than the caches of servers hold."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    rows = []
    with torch.no_grad():
        for name, (outputs, inputs) in MATRICES.items():
            for count in ROWS:
                row = {"matrix": name, "outputs": outputs, "inputs": inputs, "rows": count}
                row["milliseconds"] = measure(outputs, inputs, count, args.rounds, clock)
                rows.append(row)
                print(json.dumps(row), flush=True)
        cold = {name: measure_cold(*shape, clock) for name, shape in MATRICES.items()}
        print(json.dumps(cold, indent=1))
    machine = {"processor": processor(), "threads": args.threads, "torch": torch.__version__,
               "rounds": args.rounds, "levels": native.levels()}  # fmt: skip
    text = json.dumps({"machine": machine, "warm": rows, "one row, cold": cold}, indent=1) + "\n"
    (args.out / "ternary.json").write_text(text)


def ways(layer: PackedTernary, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every way to the layer's product of these rows."""
    outputs, inputs = layer.out_features, layer.in_features
    bias = layer.bias
    packed = tiles_to_rows(layer.codes, outputs, inputs)
    integers = layer.unpack()
    weight = integers * layer.scale[:, None]
    low, low_bias, low_x = weight.bfloat16(), bias.bfloat16(), x.bfloat16()

    def official() -> Tensor:
        """As released: bytes to uint8, to float32, minus 1, times a, then a dense product."""
        codes = torch.cat([packed >> shift & 3 for shift in (6, 4, 2, 0)])
        return F.linear(x, (codes.float() - 1) * layer.scale[0], bias)

    def int8() -> Tensor:
        q, scale = round_rows(x[0])
        return (integer_product(q, integers) * layer.scale).mul_(scale).add_(bias)

    def with_activations(kind: str) -> Callable[[], Tensor]:
        twin = PackedTernary.from_codes(integers, layer.scale, bias, activations=kind)
        return lambda: twin(x)

    kept = PackedTernary.from_codes(integers, layer.scale, bias)
    keep_weights_(kept)
    return {
        "official, float32": official,
        "dense float32": lambda: F.linear(x, weight, bias),
        "dense bfloat16": lambda: F.linear(low_x, low, low_bias),
        "dense int8": int8,
        "packed, full": with_activations("full"),
        "packed, full, kept": lambda: kept(x),
        "packed, int8": with_activations("int8"),
    }


def measure(
    outputs: int, inputs: int, count: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds of each way."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (outputs, inputs), generator=draw, dtype=torch.int8)
    layer = PackedTernary.from_codes(
        codes, torch.rand(outputs, generator=draw), torch.randn(outputs, generator=draw)
    )
    tasks = ways(layer, torch.randn(1, count, inputs, generator=draw))  # the tokens of an image
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds + 1):  # the first one warms up
        for name, task in tasks.items():
            started = clock()
            task()
            best[name] = min(best[name], clock() - started)
    return {name: round(1e3 * seconds, 3) for name, seconds in best.items()}


def measure_cold(outputs: int, inputs: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of one row's product, and of reading the packed weights, from memory."""
    size = outputs * inputs // 4
    matrices = [
        torch.full((outputs // 16, inputs // 16, 64), 0b01100001, dtype=torch.uint8)
        for _ in range(COLD_BYTES // size)
    ]
    x, scale = torch.randn(1, inputs), torch.rand(1)
    tasks: dict[str, Callable[[Tensor], Any]] = {
        "floor": lambda tiles: tiles.view(torch.int64).sum(),
        "packed, int8": lambda tiles: native.rounded_product(
            x, tiles, scale, None, outputs=outputs
        ),
    }
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(6):
        for name, task in tasks.items():
            started = clock()
            for tiles in matrices:
                task(tiles)
            best[name] = min(best[name], (clock() - started) / len(matrices))
    return {name: round(1e3 * seconds, 4) for name, seconds in best.items()}


if __name__ == "__main__":
    main()
