"""The optimiser: parameter groups, warm-up and decay of the learning rate, its state as tensors."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from diffit.training.shards import part_like

Law = Literal["constant", "cosine", "linear", "inverse-sqrt", "step"]
"""How the learning rate falls after the warm-up."""

Decayed = Literal["matrices", "all"]
"""What weight decay acts on: weights of linear and convolution layers, or all parameters."""


def learning_rate(
    images: int,
    *,
    peak: float,
    warmup: int = 0,
    law: Law = "constant",
    start: int = 0,
    end: int = 0,
    floor: float = 0.0,
) -> float:
    """The learning rate of the step that ends ``images`` images into the run.

    Args:
        images: images seen, this step's included.
        peak: the rate that the warm-up reaches.
        warmup: images over which the rate rises linearly from 0.
        law: how it falls. `cosine` and `linear` go from ``start`` to ``end``; `inverse-sqrt` is
            peak / sqrt(images / start) from ``start`` on (arXiv:2312.02696); `step` drops to
            ``floor`` after ``start``, as in ternary training (arXiv:2405.14854).
        start: images up to which the rate does not fall.
        end: images at which it has fallen to ``floor``; `step` does without.
        floor: the share of ``peak`` that is left at the end.
    """
    rise = min(1.0, images / warmup) if warmup else 1.0
    return peak * rise * max(floor, _fall(images, law, max(start, warmup), end, floor))


def _fall(images: int, law: Law, start: int, end: int, floor: float) -> float:
    if law == "constant" or images <= start:
        return 1.0
    if law == "step":
        return floor
    if law == "inverse-sqrt":
        return math.sqrt(max(start, 1) / images)
    done = min(1.0, (images - start) / (end - start)) if end > start else 1.0
    left = 1 - done if law == "linear" else (1 + math.cos(math.pi * done)) / 2
    return floor + (1 - floor) * left


def build_optimizer(
    network: nn.Module,
    *,
    name: Literal["adam", "adamw"],
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    decayed: Decayed = "matrices",
) -> torch.optim.Optimizer:
    """Adam or AdamW over the network's trainable parameters.

    Weight decay acts on the weights of linear and convolution layers alone: norms, biases and
    tables (labels, positions) are no maps whose size should be held down. Recipes that decay them
    too have ``decayed="all"``, which leaves out what a module names in its ``undecayed``.
    """
    names = set(_matrices(network) if decayed == "matrices" else _all_but_undecayed(network))
    trained = [(key, p) for key, p in network.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for key, p in trained if key in names], "weight_decay": weight_decay},
        {"params": [p for key, p in trained if key not in names], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    # One kernel for all parameters; MPS has it only in recent versions.
    fused = all(p.device.type in ("cpu", "cuda") for _, p in trained)
    used = [group for group in groups if group["params"]]
    return kind(used, lr=rate, betas=betas, eps=epsilon, fused=fused)


def _matrices(network: nn.Module) -> set[str]:
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    return {
        f"{name}.weight" if name else "weight"
        for name, module in network.named_modules()
        if isinstance(module, layers)
    }


def _all_but_undecayed(network: nn.Module) -> Iterator[str]:
    for place, module in network.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if name not in getattr(module, "undecayed", ()):
                yield f"{place}.{name}" if place else name


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as `PARAMETER/QUANTITY` -> tensor, for a checkpoint."""
    names = {id(p): name for name, p in network.named_parameters()}
    return {
        f"{names[id(p)]}/{quantity}": value
        for p, state in optimizer.state.items()
        for quantity, value in state.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Undo `optimizer_tensors`."""
    parameters = dict(network.named_parameters())
    for key, value in tensors.items():
        name, quantity = key.rsplit("/", 1)
        p = parameters[name]
        # Copied: the tensors of a file may be views of it, which would keep it open.
        if quantity != "step":
            optimizer.state[p][quantity] = part_like(value, p.detach())
            continue
        # The step counter stays where the optimiser put it: beside the weights when fused.
        on = p.device if _is_fused(optimizer) else torch.device("cpu")
        optimizer.state[p][quantity] = value.to(on, copy=True)


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused"))


class LossScale:
    """The factor that keeps fp16 gradients from vanishing (arXiv:1710.03740).

    It halves when gradients overflow and doubles after ``patience`` steps that did not.
    """

    def __init__(self, *, start: float, patience: int = 2000) -> None:
        self.factor = start
        self.patience = patience
        self.good = 0

    def update(self, *, finite: bool) -> None:
        """Take note of a step's gradients."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.good == self.patience:
            self.factor, self.good = self.factor * 2, 0
