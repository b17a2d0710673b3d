"""Train the small classifiers whose features make evaluation possible without Inception.

    python tools/train_classifiers.py src/diffit/assets

Run once by a developer; takes about two minutes on one thread and gives the same weights each
time on the same machine. What is held out of the embedded data is never trained on.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from diffit.evaluation.classifiers import Classifier, ClassifierConfig

BATCH = 64
RATE = 2e-3
SEED = 0
COARSE = {8: 1, 32: 2}
"""For each size, how much smaller the image is that must be found in the features."""
COPY_WEIGHT = 10.0
BANDS = 3
"""Heights of a photograph, told apart as an auxiliary task."""


class Data(NamedTuple):
    """Images with the classes that are shipped and those that only shape the features."""

    images: Tensor
    """(N, C, H, W) uint8."""
    labels: Tensor
    """(N,) int64."""
    extra: Tensor
    """(N, A) int64, labels of auxiliary tasks; A may be 0."""
    held_out: Tensor
    """(N,) bool."""


def digits(folder: Path) -> Data:
    table = np.load(folder / "digits.npz")
    images = torch.from_numpy(table["images"])[:, None]
    labels = torch.from_numpy(table["labels"]).long()
    return Data(images, labels, labels.new_zeros(len(labels), 0), tensor(table["held_out"]))


def patches(folder: Path) -> Data:
    """Beside the photograph: how far it was reduced, and how high in it the patch lies."""
    table = np.load(folder / "patches.npz")
    sheet = np.asarray(Image.open(folder / "patches.png").convert("RGB"))
    half = sheet.shape[0] // 2
    images, extra = [], []
    for (row, column), label in zip(table["corners"], table["labels"], strict=True):
        images.append(sheet[row : row + 32, column : column + 32].transpose(2, 0, 1))
        # The sheet holds the levels side by side: 320, 213 and 160 pixels wide.
        level = int(np.searchsorted((320, 533), column, side="right"))
        height = half / (1, 1.5, 2)[level]
        band = int(BANDS * (row - label * half) / (height - 31))
        extra.append((level, min(band, BANDS - 1)))
    return Data(
        tensor(np.stack(images)),
        tensor(table["labels"]).long(),
        torch.tensor(extra),
        tensor(table["held_out"]),
    )


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def shifted(images: Tensor, reach: int) -> Tensor:
    """Each image moved by up to ``reach`` pixels; the edge is repeated."""
    padded = F.pad(images.float(), (reach,) * 4, mode="replicate")
    height, width = images.shape[-2:]
    moved = torch.empty_like(images)
    for i, (y, x) in enumerate(torch.randint(0, 2 * reach + 1, (len(images), 2)).tolist()):
        moved[i] = padded[i, :, y : y + height, x : x + width].to(images.dtype)
    return moved


def train(
    data: Data, config: ClassifierConfig, *, epochs: int, reach: int, turns: bool
) -> Classifier:
    """A classifier trained on what is not held out; ``turns`` adds rotation as a task.

    A linear map must also find the image, ``COARSE`` times smaller, in the features. Without it
    they collapse onto the classes: nine directions for ten digits, blind to how a digit is drawn.
    """
    torch.manual_seed(SEED)
    network = Classifier(config)
    extra = data.extra
    tasks = [int(column.max()) + 1 for column in extra.T] + ([4] if turns else [])
    heads = nn.ModuleList(nn.Linear(config.features, classes) for classes in tasks)
    side = config.size // COARSE[config.size]
    copy = nn.Linear(config.features, config.channels * side**2)
    parameters = [*network.parameters(), *heads.parameters(), *copy.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05)
    chosen = (~data.held_out).nonzero()[:, 0]
    steps = epochs * (len(chosen) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        if step % (len(chosen) // BATCH) == 0:
            order = chosen[torch.randperm(len(chosen))]
        rows, order = order[:BATCH], order[BATCH:]
        images = shifted(data.images[rows], reach)
        targets = list(extra[rows].T)
        if turns:
            quarter = torch.randint(0, 4, (len(rows),))
            turned = [torch.rot90(x, int(q), (1, 2)) for x, q in zip(images, quarter, strict=True)]
            images, targets = torch.stack(turned), [*targets, quarter]
        features, logits = network(images)
        coarse = F.avg_pool2d(network.prepare(images), COARSE[config.size]).flatten(1)
        loss = F.cross_entropy(logits, data.labels[rows])
        loss = loss + COPY_WEIGHT * F.mse_loss(copy(features), coarse)
        for head, target in zip(heads, targets, strict=True):
            loss = loss + F.cross_entropy(head(F.gelu(features)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        features, _ = network(data.images[chosen])
        network.scale.copy_(features.var(0).mean().rsqrt())
    return network


@torch.no_grad()
def accuracy(network: Classifier, data: Data) -> float:
    """On the held-out images."""
    _, logits = network(data.images[data.held_out])
    return float((logits.argmax(1) == data.labels[data.held_out]).float().mean())


def ship(path: Path, network: Classifier, data: Data) -> None:
    """Round the weights to float16, measure, write."""
    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    network.load_state_dict({name: value.float() for name, value in state.items()})
    config = network.config.model_copy(update={"accuracy": accuracy(network, data)})
    save_file(state, path, {"config": json.dumps(config.model_dump(mode="json"))})
    path.chmod(0o644)
    count = sum(value.numel() for value in state.values())
    print(f"{path.name}: {count} weights, held-out accuracy {config.accuracy:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    config = ClassifierConfig(
        size=8,
        channels=1,
        widths=(32, 64, 64),
        features=64,
        classes=tuple("0123456789"),
        accuracy=0,
        data="builtin:digits, five sixths",
    )
    data = digits(folder)
    network = train(data, config, epochs=40, reach=1, turns=False)
    ship(folder / "digits-cnn.safetensors", network, data)
    config = ClassifierConfig(
        size=32,
        channels=3,
        widths=(32, 48, 64, 96),
        features=128,
        classes=("china", "flower"),
        accuracy=0,
        data="builtin:patches, without a band of columns of each photograph; "
        "auxiliary tasks: reduction, height, rotation",
    )
    data = patches(folder)
    network = train(data, config, epochs=8, reach=2, turns=True)
    ship(folder / "patches-cnn.safetensors", network, data)


if __name__ == "__main__":
    main()
