"""What a run tells: its metrics as JSON lines, on the console, for TensorBoard and W&B."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from diffit.errors import DataError
from diffit.training.console import ConsoleLine
from diffit.training.folder import write_whole
from diffit.training.writers import Writer

LEVELS = 8
"""Groups of equal share into which the loss is split by noise level, the lowest level first."""

CLOCKS = ("images_per_second", "seconds", "utilisation", "data_wait", "memory")
"""What a line says of the machine; everything else is the same when a run is repeated."""


class Meter:
    """Means over the images since the last line of metrics; its state goes into checkpoints."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state = _fresh() if state is None else state

    def add(
        self, losses: Sequence[float], positions: Sequence[float], *, gradient_norm: float
    ) -> None:
        """One step: losses of images whose levels lie at ``positions`` in (0, 1) of the law."""
        for loss, position in zip(losses, positions, strict=True):
            level = int(position * LEVELS)
            self.state["level_loss"][level] += loss
            self.state["level_images"][level] += 1
        self.state["loss"] += math.fsum(losses)
        self.state["images"] += len(losses)
        self.state["gradient_norm"] += gradient_norm
        self.state["steps"] += 1

    def skip(self) -> None:
        """Note a step that was not taken."""
        self.state["skipped"] += 1

    def read(self) -> dict[str, Any]:
        """The means; counting starts again."""
        state, self.state = self.state, _fresh()
        levels = zip(state["level_loss"], state["level_images"], strict=True)
        return {
            "loss": _mean(state["loss"], state["images"]),
            "loss_by_level": [_mean(total, images) for total, images in levels],
            "gradient_norm": _mean(state["gradient_norm"], state["steps"]),
            "skipped": state["skipped"],
        }


def _fresh() -> dict[str, Any]:
    levels = {"level_loss": [0.0] * LEVELS, "level_images": [0] * LEVELS}
    return {"images": 0, "loss": 0.0, "steps": 0, "gradient_norm": 0.0, "skipped": 0, **levels}


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


class Journal:
    """Writes the metrics of a run wherever they are wanted.

    Args:
        path: the file of JSON lines; lines past ``start`` images are removed from it. None for
            all processes but the first, which write nothing.
        start: images seen when the run begins or is resumed.
        seconds: time in training up to there.
        console: shows the line, and sentences between lines.
        writers: further places for the numbers.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        start: int,
        seconds: float,
        console: ConsoleLine,
        writers: Sequence[Writer] = (),
    ) -> None:
        if path is not None:
            cut(path, start)
        self.path = path
        self.file = open(path or os.devnull, "a", encoding="utf-8")  # noqa: SIM115
        self.console = console
        self.writers = writers
        self.last = (start, seconds)

    def write(self, images: int, seconds: float, metrics: dict[str, Any]) -> None:
        """One line of metrics, ``images`` and ``seconds`` of training into the run."""
        (images_before, seconds_before), self.last = self.last, (images, seconds)
        speed = (images - images_before) / max(seconds - seconds_before, 1e-9)
        line = {
            "images": images,
            **metrics,
            "images_per_second": round(speed, 2),
            "seconds": round(seconds, 3),
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for writer in self.writers:
            writer.write(images, _scalars(line))
        self.console.show(line)

    def say(self, sentence: str) -> None:
        """Print a sentence above the line of progress."""
        self.console.say(sentence)

    def flush(self) -> None:
        """Bring the metrics to the disk."""
        if self.path is not None:
            os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.console.close()
        self.file.close()
        for writer in self.writers:
            writer.close()


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
    for level, loss in enumerate(line.get("loss_by_level", ())):
        if loss is not None:
            numbers[f"loss_by_level/{level}"] = loss
    return numbers


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of metrics; a torn last line, left by a killed process, is no line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        found = [json.loads(line) for line in lines[:-1] if line]
        return [{**line, "images": int(line["images"]), "loss": line["loss"]} for line in found]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path} is damaged; remove it: no weights depend on it") from None


def cut(path: Path, images: int) -> None:
    """Remove the lines that lie after ``images``: a resumed run will write them again."""
    lines = [line for line in read_metrics(path) if line["images"] <= images]
    if path.exists():
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
