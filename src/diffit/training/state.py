"""All that a run remembers between two steps, into a checkpoint and back."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffit import sealed
from diffit.checkpoint import POWER, checkpoint_folder, newest, prune, save_model
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
from diffit.training.parallel import is_sharded, shard
from diffit.training.recent import Recent
from diffit.training.room import refuse_little_room
from diffit.training.settings import RunConfig
from diffit.training.sharded import ShardWriter
from diffit.training.shards import Whole, fill_parts

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
        recent: the last steps, by which the next one is judged.
        passed: images seen before each batch that is passed over.
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
    recent: Recent = field(default_factory=Recent)
    passed: list[int] = field(default_factory=list)
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
    return new_state(build_model(config.model, seed=config.train.seed), config, device)


def new_state(model: Model, config: RunConfig, device: torch.device) -> State:
    """The state before the first step of a model, whose weights may be those of `empty_model`.

    Of a sharded run each process keeps its part.
    """
    train = config.train
    shard(model.network, train.parallel, device)
    if any(p.is_meta for p in model.network.parameters()):
        model.network.to_empty(device="cpu" if train.parallel.offload else device)
    elif not is_sharded(model.network):
        model.to(device)
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
    sets = {name: Whole(parts) for name, parts in state.tensors.items()}
    if not is_first():
        _pass_through(sets)
        return
    refuse_little_room(run, state.tensors)
    save_model(checkpoint_folder(run, state.images), config, sets, _content(state, config))
    _prune(run, config)


def begin_pieces(state: State, run: Path, config: RunConfig, writer: ShardWriter) -> None:
    """Begin a checkpoint that all processes write in the background, `save_state` otherwise."""
    of_first(lambda: refuse_little_room(run, state.tensors))
    writer.start(
        checkpoint_folder(run, state.images),
        config=to_yaml(config),
        sets=state.tensors,
        state=_content(state, config),
        then=lambda: _prune(run, config),
    )


def _content(state: State, config: RunConfig) -> dict[str, Any]:
    """What of a moment is no tensor."""
    return {
        "images": state.images,
        "default": config.train.ema.chosen,
        "seconds": state.seconds,
        "bad": state.bad,
        "scale": state.scale and {"factor": state.scale.factor, "good": state.scale.good},
        "meter": state.meter.state,
        "recent": [list(step) for step in state.recent.steps],
        "passed": state.passed,
        "streams": state.streams,
    }


def _prune(run: Path, config: RunConfig) -> None:
    prune(run, keep_last=config.train.keep_last, keep_every=config.train.keep_every)


def save_averages(state: State, run: Path, config: RunConfig) -> None:
    """Keep the power-function averages of this moment, from which any length can be rebuilt.

    All processes call it, the first one writes.
    """
    kept = {name: Whole(t) for name, t in state.averages.tensors.items() if name.startswith(POWER)}
    if not is_first():
        _pass_through(kept)
        return
    sealed.write_sealed(
        run / "averages" / f"{state.images:012d}",
        config=to_yaml(config),
        tensors=kept,
        state={"images": state.images, "default": next(iter(kept))},
    )


def _pass_through(sets: Mapping[str, Whole]) -> None:
    """What another process writes, it cannot put together alone."""
    for whole in sets.values():
        whole.pass_through()


def newest_of(run: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run; what to tell the user.

    Damaged ones are set aside under another name, so that none counts among those to keep. All
    processes call it; the first one looks and verifies, for all.
    """
    folder, notes = of_first(lambda: _choose(run))
    return None if folder is None else Path(folder), list(notes)


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


def restore(state: State, folder: Path) -> None:
    """Continue where a checkpoint stands, written by however many processes."""
    content = read_state(folder)
    network = state.model.network
    fill_parts(network.state_dict(), read_tensors(folder, "model"))
    load_optimizer_tensors(state.optimizer, network, read_tensors(folder, "optimizer"))
    for name in state.averages.tensors:
        state.averages.load(name, read_tensors(folder, name))
    state.images, state.seconds = content["images"], content["seconds"]
    state.bad, state.meter = content["bad"], Meter(content["meter"])
    state.recent, state.passed = Recent(content.get("recent", ())), content.get("passed", [])
    state.streams = content.get("streams", [])
    if state.scale:
        state.scale.factor = content["scale"]["factor"]
        state.scale.good = content["scale"]["good"]
