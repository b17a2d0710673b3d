"""A ViT and a denoiser of digits in folders, untrained: what commands are tried on."""

from pathlib import Path
from typing import Any

import torch

from diffit.checkpoint import save_model
from diffit.explain.classifier_folder import ClassifierCard, save_classifier
from diffit.explain.vit import ViTConfig, build_vit
from diffit.model import build_model
from tiny import tiny_run


def write_classifier(folder: Path, **shape: Any) -> Path:
    """A ViT that looks at digits by 4 x 4 tokens; keywords change its shape."""
    settings = {"size": 8, "channels": 1, "patch": 2, "width": 16, "depth": 2, "heads": 2}
    config = ViTConfig.model_validate({**settings, "classes": 10, **shape})
    vit = build_vit(config, seed=3)
    with torch.no_grad():
        vit.head.weight.mul_(30)  # untrained, but decided
    save_classifier(folder, vit, ClassifierCard(vit=config))
    return folder


def write_denoiser(folder: Path, **network: Any) -> Path:
    """A denoiser that has learnt nothing; keywords change its network."""
    config = tiny_run(network={"classes": 0, **network}, data={"labels": False})
    model = build_model(config.model, seed=1)
    save_model(folder, config, {"model": model.network.state_dict()}, {"images": 0})
    return folder
