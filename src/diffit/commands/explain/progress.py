"""The bar of `diffit explain`: noisy copies done, and the time left."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A bar on a terminal, nothing elsewhere.

    Args:
        what: is done.
        total: how much of it there is.
        done: how much was done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total, completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def tell(self, count: int) -> None:
        """So much more is done."""
        self._progress.advance(self._task, count)

    def reach(self, done: float) -> None:
        """So much is done in all, what was skipped included."""
        self._progress.update(self._task, completed=done)
