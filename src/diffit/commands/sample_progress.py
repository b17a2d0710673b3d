"""How far `diffit sample` is, on stderr; silent where that is no terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from diffit.data.example import Follow
from diffit.samples import Plan
from diffit.work import count_notes

LOOK = 5.0
"""Seconds between two looks at what other processes have drawn."""


@contextlib.contextmanager
def bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """A bar, and a function that is told how much of it is done."""
    console = Console(file=sys.stderr)
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def follow(what: str) -> Follow:
    """Passes numbers on and shows how many of them are through."""

    def through(numbers: range) -> Iterable[int]:
        with bar(what, len(numbers)) as show:
            for done, number in enumerate(numbers):
                show(done)
                yield number

    return through


class Whole:
    """How many units of a folder are drawn: by this process, and by others as their notes appear.

    Args:
        out, plan: the folder.
        show: told the number of units, which only grows.
    """

    def __init__(self, out: Path, plan: Plan, show: Callable[[float], None]) -> None:
        self.out, self.total, self.show = out, len(plan.units()), show
        self.noted, self.since, self.shown = 0, 0.0, 0.0
        self.looked = -LOOK

    def tell(self, units: float) -> None:
        """So much more has been drawn here."""
        self.since += units
        if time.monotonic() - self.looked > LOOK:
            self.noted, self.since, self.looked = count_notes(self.out), 0.0, time.monotonic()
        self.shown = max(self.shown, min(self.noted + self.since, self.total))
        self.show(self.shown)
