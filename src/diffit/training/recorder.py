"""Steps that break out: their weights and inputs on the disk, so that they can be taken again.

RUN/spikes/000000012800/    named by the images seen before the step
    config.yaml             of the run
    model.safetensors       the weights that the step started from
    inputs.safetensors      the whole batch: images, noise, labels, ...
    state.json              sigma, losses, norm, what was usual, the steps before
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from diffit import sealed
from diffit.config import to_yaml
from diffit.distributed import gather_bytes, is_first, of_first
from diffit.training.inputs import Inputs
from diffit.training.recent import Step
from diffit.training.settings import RunConfig
from diffit.training.shards import Whole
from diffit.training.state import State
from diffit.training.step import Gradients
from diffit.training.trouble import DivergedError

SPIKES = "spikes"
MOST = 8
"""Steps that are written down; each holds all weights."""


class Rewind(Exception):  # noqa: N818 - no error, but the way back
    """A step broke out: the run goes back to its newest checkpoint, and passes over this batch.

    Args:
        images: seen before the batch.
        words: what broke out.
    """

    def __init__(self, images: int, words: str) -> None:
        super().__init__(words)
        self.images = images


def refuse_many(state: State, passed: Sequence[int], most: int) -> None:
    """DivergedError if so many batches behind one checkpoint have broken out."""
    behind = [images for images in passed if images >= state.images]
    if len(behind) >= most:
        raise DivergedError(
            f"{len(behind)} batches have broken out since the checkpoint at {state.images:,} "
            "images, so the run has ended; start again with a lower train.lr or with train.clip, "
            "or go on with train.on_spike note"
        )


def judge(state: State, config: RunConfig, gradients: Gradients) -> str:
    """In what the step that was just computed breaks out; empty if in nothing.

    To be asked before the step is taken and counted. The step is among the usual ones then.
    """
    if state.scale is not None and not gradients.finite:
        return ""  # the loss scale of fp16 is found by overflows
    step = _step(state, gradients)
    words = state.recent.excess(step, config.train.spike_at)
    if gradients.finite:
        state.recent.add(step)
    return words


def record(
    run: Path,
    config: RunConfig,
    state: State,
    inputs: Inputs,
    gradients: Gradients,
    *,
    words: str,
) -> str:
    """Write down a step that breaks out, before it is taken; a sentence about it.

    All processes call it; the first one writes the whole batch.

    Raises:
        CheckpointError: if the disk is full.
    """
    folder = run / SPIKES / f"{state.images:012d}"
    what = f"a step breaks out at {state.images:,} images: {words}"
    if of_first(lambda: _full(folder)):
        return f"{what}; {run / SPIKES} has {MOST} such steps, and this is not written down"
    parts = [load(content) for content in gather_bytes(save(_tensors(inputs)))]
    weights = Whole(state.tensors["model"])
    if is_first():
        sealed.write_sealed(
            folder,
            config=to_yaml(config),
            tensors={"model": weights, "inputs": _joined(parts)},
            state=_content(state, gradients, words),
        )
    else:
        weights.pass_through()
    return f"{what}; take it again with: diffit train --replay {folder}"


def _step(state: State, gradients: Gradients) -> Step:
    losses = gradients.losses.tolist()
    return Step(state.images, math.fsum(losses) / len(losses), gradients.norm)


def _full(folder: Path) -> bool:
    """Whether there are enough; one that is written again takes its own place."""
    found = [p for p in folder.parent.glob("*") if p.name.isdigit() and p != folder]
    return len(found) >= MOST


def _tensors(inputs: Inputs) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().contiguous()
        for name, value in inputs._asdict().items()
        if value is not None
    }


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of all processes, which follow each other in the batch."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _content(state: State, gradients: Gradients, words: str) -> dict[str, Any]:
    """What JSON can hold: numbers that are not finite as texts."""
    return {
        "images": state.images,
        "why": words,
        "losses": [repr(loss) for loss in gradients.losses.tolist()],
        "gradient_norm": repr(gradients.norm),
        "loss_scale": state.scale.factor if state.scale else None,
        "recent": [list(step) for step in state.recent.steps],
    }
