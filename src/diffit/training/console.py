"""The line of progress on the console, with speed and time left."""

import math
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ConsoleLine:
    """A bar that moves on a terminal, and one plain line per report elsewhere.

    Args:
        total: length of the run in images.
        minutes: limit of the time in training, if there is one.
        quiet: say nothing.
    """

    def __init__(self, *, total: int, minutes: float | None = None, quiet: bool = False) -> None:
        self.total = total
        self.limit = math.inf if minutes is None else 60 * minutes
        self.console = Console(file=sys.stdout, quiet=quiet, highlight=False)
        self.bar: Progress | None = None

    def show(self, line: dict[str, Any]) -> None:
        """Report a line of metrics."""
        images, speed = line["images"], line["images_per_second"]
        left = min((self.total - images) / max(speed, 1e-9), self.limit - line["seconds"])
        loss = "-" if line["loss"] is None else f"{line['loss']:.4f}"
        text = (
            f"{images:,} of {self.total:,} images  loss {loss}  {speed:,.0f} images/s  "
            f"{duration(left)} left"
        )
        if not self.console.is_terminal:
            self.console.print(text, soft_wrap=True)
            return
        done = max(images / self.total, line["seconds"] / self.limit)
        bar = self._bar()
        bar.update(bar.task_ids[0], description=text, completed=done)

    def say(self, sentence: str) -> None:
        """Print a sentence; on a terminal above the bar."""
        self.console.print(sentence, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar where it stands."""
        if self.bar is not None:
            self.bar.stop()

    def _bar(self) -> Progress:
        if self.bar is None:
            # Refreshed by hand: a thread of its own would disturb two-core machines.
            self.bar = Progress(
                BarColumn(30),
                TextColumn("{task.description}"),
                console=self.console,
                auto_refresh=False,
            )
            self.bar.add_task("", total=1.0)
            self.bar.start()
        return self.bar


def duration(seconds: float) -> str:
    """`4 s`, `3 min 05 s`, `2 h 07 min` or `3 d 04 h`."""
    whole = max(0, round(seconds))
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h:02} h"
    if hours:
        return f"{hours} h {m:02} min"
    return f"{m} min {s:02} s" if minutes else f"{s} s"
