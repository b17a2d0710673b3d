"""Losses and gradients that are not finite: which images caused them, and when to give up."""

import json
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from diffit.distributed import agreed, gather, is_first
from diffit.errors import DiffitError
from diffit.training.inputs import Inputs
from diffit.training.state import State
from diffit.training.step import Gradients, Objective


class DivergedError(DiffitError):
    """Losses or gradients were not finite for too many steps in a row."""


def note_trouble(
    state: State,
    objective: Objective,
    inputs: Inputs,
    gradients: Gradients,
    *,
    index: Callable[[int], int | None],
    file: Path,
    patience: int,
) -> str | None:
    """Write down the images whose own loss or gradient is not finite; a sentence about them.

    All processes look, each at its part of the batch; the first one writes.

    Args:
        state: counts such steps in a row.
        objective: computes the images one by one.
        inputs: this process's part of the batch.
        gradients: what it gave.
        index: number of an image in the run to its number in the data set, if that is known.
        file: gets a JSON line.
        patience: so many such steps in a row raise `DivergedError`.

    Returns:
        None if fp16 overflowed only because of its loss scale, which is no fault of any image.
    """
    if _overflow(state, gradients):
        return None
    state.bad += 1
    mine = [
        (int(inputs.number[place]), float(inputs.sigma[place]), repr(loss))
        for place, loss in objective.culprits(inputs).items()
    ]
    found = sorted(chain(*gather(mine)))
    record = {
        "images": state.images,
        "numbers": [number for number, _, _ in found],
        "indices": [index(number) for number, _, _ in found],
        "sigmas": [sigma for _, sigma, _ in found],
        "losses": [loss for _, _, loss in found],
    }
    if is_first():
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
    with agreed():
        if state.bad >= patience:
            raise DivergedError(
                f"loss or gradient was not finite in {state.bad} steps in a row, at "
                f"{state.images} images, so the run has ended; {file} lists the images; start "
                "again with a lower train.lr or with train.clip"
            )
    who = f"images {record['indices']} of the data" if found else "no single image"
    return f"step skipped at {state.images} images: not finite because of {who}; see {file}"


def _overflow(state: State, gradients: Gradients) -> bool:
    losses = all(math.isfinite(loss) for loss in gradients.losses.tolist())
    return state.scale is not None and state.scale.factor > 1 and losses
