"""What a run shows to who looks on: read while it is written, and whatever state it is in."""

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffit.checkpoint import checkpoints
from diffit.config import parse
from diffit.errors import UsageError
from diffit.training.console import duration
from diffit.training.folder import CONFIG, METRICS, is_run, read_run
from diffit.training.settings import RunConfig

FIGURES = {
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "attention_logit": "attention logit",
    "ema_distance": "average to weights",
    "lr": "learning rate",
    "images_per_second": "images / s",
    "utilisation": "utilisation",
    "data_wait": "data wait",
    "memory": "memory",
}
"""Keys of a line of metrics that are drawn over the images, and what they are called."""

PATIENCE = 60.0
"""Seconds beyond three usual pauses between two lines after which a run is called silent."""
RECENT = 10
"""Lines that warnings look at."""
LONG_WAIT = 0.2
LARGE_LOGIT = 50.0
"""Attention whose logits are larger puts all weight on single tokens."""
JUMP = 3.0


@dataclass(frozen=True)
class View:
    """A run as it is at one moment.

    Attributes:
        folder: of the run.
        config: its settings.
        lines: of metrics, each with `images`, as far as they can be read.
        damaged: how many lines cannot.
        age: seconds since the last line; None without lines.
        checkpoints: images of each.
        snapshots: folders of pictures, the oldest first.
        spikes: folders of steps that broke out, see `diffit.training.recorder`.
    """

    folder: Path
    config: RunConfig
    lines: tuple[dict[str, Any], ...]
    damaged: int
    age: float | None
    checkpoints: tuple[int, ...]
    snapshots: tuple[Path, ...]
    spikes: tuple[Path, ...]

    @property
    def images(self) -> int:
        """Images seen, as of the last line."""
        return int(self.lines[-1]["images"]) if self.lines else 0

    @property
    def done(self) -> bool:
        """Whether all images are seen."""
        return self.images >= self.config.train.images

    @property
    def status(self) -> str:
        """Done, training, silent for some time, or not begun."""
        if self.age is None:
            return "no line yet"
        if self.done:
            return "done"
        if self.age <= 3 * self._pause + PATIENCE:
            return "training"
        return f"silent for {duration(self.age)}"

    @property
    def left(self) -> float:
        """Seconds to the end at the present speed."""
        speed = number(self.lines[-1].get("images_per_second")) if self.lines else None
        if not speed:
            return math.inf
        limit = self.config.train.minutes
        rest = max(0, self.config.train.images - self.images) / speed
        spent = number(self.lines[-1].get("seconds")) or 0.0
        return rest if limit is None else min(rest, max(0.0, 60 * limit - spent))

    @property
    def _pause(self) -> float:
        """Seconds between two lines."""
        times = [t for t in (number(line.get("seconds")) for line in self.lines[-9:]) if t]
        gaps = [b - a for a, b in pairwise(times)]
        return max(0.0, statistics.median(gaps)) if gaps else 0.0

    def points(self, key: str) -> list[tuple[float, float]]:
        """(images, value) of each line that has a finite value."""
        found = ((line["images"], number(line.get(key))) for line in self.lines)
        return [(float(images), value) for images, value in found if value is not None]

    def levels(self, place: int = -1) -> list[float]:
        """Loss by noise level, low to high, of one line; empty if it has none."""
        kept = self.lines[place].get("loss_by_level") if self.lines else None
        return [number(x) or math.nan for x in kept] if isinstance(kept, list) else []

    def warnings(self) -> list[str]:
        """What deserves a look, a sentence each."""
        recent = self.lines[-RECENT:]
        skipped = sum(int(number(line.get("skipped")) or 0) for line in recent)
        waits = [w for line in recent if (w := number(line.get("data_wait"))) is not None]
        logit = number(recent[-1].get("attention_logit")) if recent else None
        found = {
            f"{skipped} steps were skipped in the last {len(recent)} lines": skipped > 0,
            f"{len(self.spikes)} steps broke out: see {self.folder / 'spikes'}": self.spikes,
            _jump(self.points("loss")): len(self.lines) > RECENT,
            f"steps wait for data {_percent(waits)} of the time: more data.workers, or pack the "
            "data": waits and statistics.median(waits) > LONG_WAIT,
            f"attention logits reach {logit or 0:.0f}": logit and logit > LARGE_LOGIT,
            f"{self.damaged} lines of {METRICS} cannot be read": self.damaged,
        }
        return [sentence for sentence, holds in found.items() if holds and sentence]


def look(folder: Path) -> View:
    """The run in a folder as it is now; UsageError if there is none."""
    if not is_run(folder):
        what = "is no folder of a run" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {what}; name one that `diffit train` made")
    config = parse(RunConfig, read_run(folder), source=str(folder / CONFIG))
    path = folder / METRICS
    lines, damaged = read_lines(path)
    return View(
        folder=folder,
        config=config,
        lines=tuple(lines),
        damaged=damaged,
        age=max(0.0, time.time() - path.stat().st_mtime) if lines else None,
        checkpoints=tuple(int(p.name) for p in checkpoints(folder)),
        snapshots=tuple(_numbered(folder / "snapshots")),
        spikes=tuple(_numbered(folder / "spikes")),
    )


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The readable lines of metrics, and the number of others.

    A last line without its end is being written, and is neither.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    found, damaged = [], 0
    for line in text.split("\n")[:-1]:
        try:
            content = json.loads(line)
            images = content["images"]
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged += bool(line.strip())
            continue
        if number(images) is None or images < 0:
            damaged += 1
        else:
            found.append(content)
    return found, damaged


def number(value: object) -> float | None:
    """A finite number as it is, None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def shown(key: str, value: float) -> str:
    """A figure of a line in a few characters."""
    if key in ("utilisation", "data_wait", "ema_distance"):
        return f"{100 * value:.3g} %"
    if key == "memory":
        return f"{value / 2**30:.3g} GiB"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _jump(points: Sequence[tuple[float, float]]) -> str:
    losses = [loss for _, loss in points]
    if len(losses) <= RECENT:
        return ""
    usual = statistics.median(losses[-RECENT - 1 : -1])
    if usual <= 0 or losses[-1] <= JUMP * usual:
        return ""
    return f"the loss has jumped to {losses[-1]:.3g}, {losses[-1] / usual:.1f} times the usual"


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * statistics.median(shares):.0f} %" if shares else ""


def _numbered(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.name.isdigit() and p.is_dir())
