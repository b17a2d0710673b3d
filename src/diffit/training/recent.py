"""The last steps of a run, and which step breaks out of what is usual among them."""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

WINDOW = 128
"""Steps that say what is usual."""
LEAST = 32
"""Fewer of them say nothing."""
NORMAL = 1.4826
"""Median distance to the median, to the standard deviation of a normal law."""
FLOOR = 0.05
"""Least deviation of a logarithm: large batches hardly differ, and 5 % are no event."""


class Step(NamedTuple):
    """A step that was computed: images seen before it, mean loss, norm of the gradient."""

    images: int
    loss: float
    norm: float


class Recent:
    """The last steps, part of a run's state: what breaks out is the same when it is repeated."""

    def __init__(self, steps: Iterable[Iterable[float]] = ()) -> None:
        self.steps = deque((Step(int(n), loss, norm) for n, loss, norm in steps), maxlen=WINDOW)

    def add(self, step: Step) -> None:
        """Count a finite step among the usual ones, even if it broke out: levels do change."""
        self.steps.append(step)

    def excess(self, step: Step, limit: float) -> str:
        """In what a step breaks out, in words; empty if in nothing.

        The logarithms of loss and norm are compared with their median, in robust deviations: the
        median distance to it, scaled to that of a normal law, and a little more.

        Args:
            step: is not among the recent ones yet.
            limit: so many deviations above the median are usual.
        """
        if not (math.isfinite(step.loss) and math.isfinite(step.norm)):
            return f"loss {step.loss:.4g}, gradient norm {step.norm:.4g}"
        found = []
        for words, value, past in (
            ("loss", step.loss, [s.loss for s in self.steps]),
            ("gradient norm", step.norm, [s.norm for s in self.steps]),
        ):
            if len(past) < LEAST or value <= 0 or min(past) <= 0:
                continue
            if _deviations(value, past) > limit:
                found.append(f"{words} {value:.4g}, usual is {statistics.median(past):.4g}")
        return "; ".join(found)


def _deviations(value: float, past: list[float]) -> float:
    logs = [math.log(x) for x in past]
    middle = statistics.median(logs)
    spread = statistics.median(abs(x - middle) for x in logs)
    return (math.log(value) - middle) / (NORMAL * spread + FLOOR)
