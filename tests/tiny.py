"""A training run of seconds: a network of some thousand weights on the built-in digits."""

from typing import Any

from diffit.config import parse
from diffit.training.settings import RunConfig

NETWORK = {
    "name": "diffit", "size": 8, "channels": 1, "classes": 10, "widths": [16, 16],
    "blocks": [1, 1], "heads": 2, "window": 4, "time_width": 32, "time_features": 16, "groups": 4,
    "mlp_ratio": 2.0, "dropout": 0.1, "augment": True,
}  # fmt: skip

TRAIN = {
    "images": 128, "batch": 16, "micro_batch": 8, "lr": 1e-3, "log_every": 32,
    "checkpoint_every": 64, "snapshot_every": 0, "tensorboard": False, "threads": 1,
    "ema": {"constant": [0.9], "half_life": [64], "power": [0.05, 0.1]},
}  # fmt: skip


def tiny_run(*, network: Any = None, data: Any = None, **train: Any) -> RunConfig:
    """Settings with every source of randomness switched on; keywords replace those of `train`."""
    settings = {
        "model": {"network": {**NETWORK, **(network or {})}},
        "data": {"path": "builtin:digits", "augment": 0.5, **(data or {})},
        "train": {**TRAIN, **train},
    }
    return parse(RunConfig, settings, source="test")
