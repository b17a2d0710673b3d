"""How fast and how true the explanations are.

    python benchmarks/explanations.py [--shape small]      images a second of each method
    python benchmarks/explanations.py --classifier runs/patches --data builtin:patches-test

Speed is in CPU seconds of one thread, with random weights, since time depends on the shape alone;
the last column takes one image at a time, as code must that sums relevance over a whole batch. With
a classifier the most, or the least, relevant pixels are blanked, and its accuracy against its own
answer is measured: the lower the first area and the higher the second, the truer the map.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from diffit import draws
from diffit.data import DataConfig, open_data
from diffit.explain.attribution import METHODS, to_grid, token_maps, upsample
from diffit.explain.classifier import Attentive, need_attention
from diffit.explain.measures.perturbation import area, perturbation_test
from diffit.explain.opening import open_classifier
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
    """One line for each method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="digits")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--classifier", help="measure how true its explanations are, not how fast")
    parser.add_argument("--data", default="builtin:patches-test")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.classifier:
        measure_truth(args.classifier, args.data, args.methods, args.batch)
    else:
        measure_speed(args.shape, args.methods, args.batch)


def measure_speed(shape: str, methods: list[str], batch: int) -> None:
    """Images a second that are predicted, and that each method explains."""
    vit = build_vit(SHAPES[shape]).requires_grad_(False)
    images = torch.rand(batch, *vit.shape) * 2 - 1
    labels = torch.zeros(batch, dtype=torch.int64)

    def predict() -> None:
        with torch.no_grad():
            vit(images)

    def one_by_one(name: str) -> None:
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            METHODS[name].run(vit, image, label)

    print(f"{shape}, batch {batch}: images a second, batched and one at a time")
    print(f"{'prediction':24}{batch / seconds(predict):10.1f}")
    for name in methods:
        batched = batch / seconds(lambda name=name: METHODS[name].run(vit, images, labels))
        single = batch / seconds(lambda name=name: one_by_one(name))
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


def measure_truth(path: str, data: str, methods: list[str], batch: int) -> None:
    """Areas under the accuracy while pixels are blanked, most and least relevant first."""
    classifier = need_attention(open_classifier(path))
    dataset = open_data(DataConfig(path=data))
    rows = [torch.as_tensor(dataset[i].image) for i in range(len(dataset))]
    images = torch.stack(rows).float() / 127.5 - 1
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    tokens = classifier.grid[0] * classifier.grid[1]
    chance = draws.uniform(0, range(len(images) * tokens), "chance").view(-1, tokens)
    print(f"{path}, {len(images)} images of {data}: areas, most and least relevant pixels first")
    show("chance", classifier, images, labels, chance.float())
    for name in methods:
        parts = [
            token_maps(name, classifier, some, label)
            for some, label in zip(images.split(batch), labels.split(batch), strict=True)
        ]
        show(name, classifier, images, labels, torch.cat(parts))


def show(name: str, classifier: Attentive, images: Tensor, labels: Tensor, maps: Tensor) -> None:
    """Print both areas of some token maps."""
    relevance = upsample(to_grid(maps, classifier.grid), tuple(images.shape[2:]))
    areas = []
    for order in ("positive", "negative"):
        found = perturbation_test(classifier, images, relevance, labels, order=order)
        areas.append(area(found.accuracy, found.fractions))
    print(f"{name:24}{areas[0]:10.3f}{areas[1]:10.3f}", flush=True)


if __name__ == "__main__":
    main()
