"""A bar of progress on a terminal, and sizes for people."""

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.progress import track


def follow(what: str) -> Callable[[range], Iterable[int]]:
    """Wraps numbers, to show on a terminal how far ``what`` is."""
    console = Console(stderr=True)

    def followed(numbers: range) -> Iterable[int]:
        return track(
            numbers, what, console=console, transient=True, disable=not console.is_terminal
        )

    return followed


def in_bytes(count: int) -> str:
    """`1.5 MiB` or `2.0 GiB`."""
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
