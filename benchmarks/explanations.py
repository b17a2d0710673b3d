"""Images a second that each method explains: `python benchmarks/explanations.py [--shape base]`.

CPU seconds of one thread, random weights, since time depends on the shape alone. The last column
takes one image at a time, as code must that sums relevance over a whole batch.
"""

import argparse
import time
from collections.abc import Callable

import torch

from diffit.explain.attribution import METHODS
from diffit.explain.vit import ViTConfig, build_vit

SHAPES = {
    "digits": ViTConfig(
        size=8, channels=1, patch=2, width=64, depth=4, heads=4, mlp_ratio=2, classes=10
    ),
    "small": ViTConfig(size=32, patch=4, width=192, depth=6, heads=3, classes=10),
    "base": ViTConfig(size=224, patch=16, width=768, depth=12, heads=12, classes=1000),
}
REPEATS = 3


def main() -> None:
    """One line for the plain prediction and for each method."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="digits")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    vit = build_vit(SHAPES[args.shape]).requires_grad_(False)
    images = torch.rand(args.batch, *vit.shape) * 2 - 1
    labels = torch.zeros(args.batch, dtype=torch.int64)

    def predict() -> None:
        with torch.no_grad():
            vit(images)

    def one_by_one(name: str) -> None:
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            METHODS[name].run(vit, image, label)

    print(f"{args.shape}, batch {args.batch}: images a second, batched and one at a time")
    print(f"{'prediction':24}{args.batch / seconds(predict):10.1f}")
    for name in args.methods:
        batched = args.batch / seconds(lambda name=name: METHODS[name].run(vit, images, labels))
        single = args.batch / seconds(lambda name=name: one_by_one(name))
        print(f"{name:24}{batched:10.1f}{single:10.1f}", flush=True)


def seconds(function: Callable[[], object]) -> float:
    """CPU seconds of a call, the best of some."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
