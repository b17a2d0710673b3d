"""All that a run remembers between two steps, into a checkpoint and back."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffit import sealed
from diffit.checkpoint import checkpoint_folder, newest, prune, save_model
from diffit.config import to_yaml
from diffit.distributed import is_first, of_first
from diffit.errors import CheckpointError
from diffit.model import Model, build_model
from diffit.sealed import read_state, read_tensors
from diffit.training.ema import Averages
from diffit.training.journal import Meter
from diffit.training.optim import (
    LossScale,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from diffit.training.room import refuse_little_room
from diffit.training.settings import RunConfig

FIRST_SCALE = 2.0**16
"""Loss scale of the first fp16 step; it halves until gradients stay finite."""


@dataclass
class State:
    """Where a run stands.

    Attributes:
        model: the trained weights.
        optimizer: with its moments.
        averages: of the weights.
        scale: of the loss, in fp16 runs.
        meter: of the metrics since the last line.
        images: seen so far.
        seconds: spent in training so far.
        bad: steps in a row whose loss or gradient was not finite.
        streams: where each process stands in its shards.
    """

    model: Model
    optimizer: torch.optim.Optimizer
    averages: Averages
    scale: LossScale | None
    meter: Meter
    images: int = 0
    seconds: float = 0.0
    bad: int = 0
    streams: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Name of each file of a checkpoint -> its tensors."""
        return {
            "model": self.model.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.model.network),
            **self.averages.tensors,
        }


def fresh_state(config: RunConfig, device: torch.device) -> State:
    """The state before the first step."""
    train = config.train
    model = build_model(config.model, seed=train.seed).to(device)
    optimizer = build_optimizer(
        model.network,
        name=train.optimizer,
        rate=train.lr,
        betas=train.betas,
        epsilon=train.epsilon,
        weight_decay=train.weight_decay,
        decayed=train.weight_decay_on,
    )
    scale = LossScale(start=FIRST_SCALE) if train.precision == "fp16" else None
    return State(model, optimizer, Averages(model.network, train.ema), scale, Meter())


def save_state(state: State, run: Path, config: RunConfig) -> None:
    """Write a checkpoint, and only then remove those that it makes superfluous.

    All processes call it, the first one writes.
    """
    if not is_first():
        return
    train = config.train
    content: dict[str, Any] = {
        "images": state.images,
        "default": train.ema.chosen,
        "seconds": state.seconds,
        "bad": state.bad,
        "scale": state.scale and {"factor": state.scale.factor, "good": state.scale.good},
        "meter": state.meter.state,
        "streams": state.streams,
    }
    folder, tensors = checkpoint_folder(run, state.images), state.tensors
    refuse_little_room(run, tensors)
    save_model(folder, config, tensors, content)
    prune(run, keep_last=train.keep_last, keep_every=train.keep_every)


def save_averages(state: State, run: Path, config: RunConfig) -> None:
    """Keep the power-function averages of this moment, from which any length can be rebuilt.

    All processes call it, the first one writes.
    """
    if not is_first():
        return
    kept = {name: t for name, t in state.averages.tensors.items() if name.startswith("ema-power-")}
    sealed.write_sealed(
        run / "averages" / f"{state.images:012d}",
        config=to_yaml(config),
        tensors=kept,
        state={"images": state.images, "default": next(iter(kept))},
    )


def restore_newest(state: State, run: Path) -> list[str]:
    """Continue where the newest intact checkpoint of a run stands; what to tell the user.

    Damaged ones are set aside under another name, so that none counts among those to keep. All
    processes call it; the first one looks and verifies, for all.
    """
    folder, notes = of_first(lambda: _choose(run))
    if folder is not None:
        _restore(state, Path(folder))
    return list(notes)


def _choose(run: Path) -> tuple[str | None, list[str]]:
    """The newest intact checkpoint, and what became of newer ones."""
    found = newest(run)
    if found.folder is None and found.damaged:
        raise CheckpointError(
            f"no checkpoint of {run} is intact, so it cannot be resumed; start a new run"
        )
    notes = []
    for folder, reason in found.damaged.items():
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        notes.append(f"{reason}; passed over and set aside as {aside.name}")
    return None if found.folder is None else str(found.folder), notes


def _restore(state: State, folder: Path) -> None:
    content = read_state(folder)
    network = state.model.network
    network.load_state_dict(read_tensors(folder, "model"))
    load_optimizer_tensors(state.optimizer, network, read_tensors(folder, "optimizer"))
    for name in state.averages.tensors:
        state.averages.load(name, read_tensors(folder, name))
    state.images, state.seconds = content["images"], content["seconds"]
    state.bad, state.meter = content["bad"], Meter(content["meter"])
    state.streams = content.get("streams", [])
    if state.scale:
        state.scale.factor = content["scale"]["factor"]
        state.scale.good = content["scale"]["good"]
