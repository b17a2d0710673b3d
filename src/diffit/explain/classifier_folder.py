"""Folders of a ViT classifier: its weights, its configuration, and what it can do.

They are sealed: written whole or not at all, and refused unless they are as they were written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from diffit.config import Settings, parse, read_yaml, to_yaml
from diffit.errors import CheckpointError, ConfigError
from diffit.explain.vit import ViT, ViTConfig, empty_vit
from diffit.sealed import CONFIG, read_state, read_tensors, verify, write_sealed

KIND, WEIGHTS = "classifier", "model"


class ClassifierCard(Settings):
    """The content of `config.yaml`: the network, and what is known of it."""

    vit: ViTConfig
    value_range: Literal["[-1, 1]"] = "[-1, 1]"
    """Images are handed to it in this range; mean and std of `vit` are for those in [0, 1]."""
    data: str = ""
    """What it was trained on."""
    accuracy: float | None = Field(default=None, ge=0, le=1)
    """Share of held-out images that it classifies rightly."""
    held_out: int = Field(default=0, ge=0)
    """How many images that was measured on."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """The settings of its training."""


def save_classifier(
    folder: Path, vit: ViT, card: ClassifierCard, *, state: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier's folder; an older classifier there is replaced.

    Args:
        folder: where it will be.
        vit: the network; its weights are written in float32.
        card: what is known of it; ``card.vit`` must be its configuration.
        state: what else belongs to it, such as the number of images seen; goes to `state.json`.

    Raises:
        CheckpointError: ``folder`` is something else, or the disk is full.
        ValueError: the card describes another network, or a weight is not finite.
    """
    if card.vit != vit.config:
        raise ValueError("the card describes another network than the one to be written")
    if folder.exists() and not is_classifier(folder):
        raise CheckpointError(f"{folder} exists and is no classifier; name a new folder")
    weights = {name: tensor.detach().float().cpu() for name, tensor in vit.state_dict().items()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the weight {name} is not finite; the classifier is not written")
    write_sealed(
        folder,
        config=to_yaml(card),
        tensors={WEIGHTS: weights},
        state={**(state or {}), "kind": KIND},
    )


def is_classifier(folder: Path) -> bool:
    """Whether a folder says that it holds a classifier of this library."""
    try:
        return read_state(folder).get("kind") == KIND
    except CheckpointError:
        return False


def read_card(folder: Path) -> ClassifierCard:
    """What is known of the classifier in a folder; CheckpointError if there is none."""
    if read_state(folder).get("kind") != KIND:
        raise CheckpointError(
            f"{folder} holds no classifier; name a folder of `diffit explain train-classifier`"
        )
    verify(folder, CONFIG)
    try:
        return parse(ClassifierCard, read_yaml(folder / CONFIG), source=str(folder / CONFIG))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def load_classifier(folder: Path) -> ViT:
    """The classifier in a folder, its files verified, frozen, in evaluation mode, on the CPU."""
    card = read_card(folder)
    vit = empty_vit(card.vit)
    weights = read_tensors(folder, WEIGHTS)
    wanted = {name: tensor.shape for name, tensor in vit.state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in weights.items()}:
        raise CheckpointError(f"{folder}: its weights are not those of its {CONFIG}")
    vit.load_state_dict(weights, assign=True)
    vit.name = str(folder)
    return vit.eval().requires_grad_(False)
