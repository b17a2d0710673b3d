"""`diffit watch RUN`: curves, figures and warnings of runs, on the terminal and as a page."""

import math
import os
import time
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from diffit.commands.watch_page import TITLE, draw_page, names_of
from diffit.config import Settings
from diffit.errors import UsageError
from diffit.training.console import duration
from diffit.training.folder import write_whole
from diffit.training.watching import FIGURES, View, look, shown

MOST = 6
"""Runs beside each other: as many as the page has colours."""
BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
"""Heights of a curve, and those for terminals without such letters."""


class Args(Settings):
    """Look on while models are trained, or at what is left of it afterwards."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folders of runs; several are shown beside each other."""
    html: Path | None = None
    """Also write this page, again at every look: curves and pictures in one file."""
    once: bool = False
    """Look once and end, for scripts; the same where the output is no terminal."""
    interval: float = Field(default=2.0, gt=0, le=3600)
    """Seconds between two looks."""


def run(args: Args) -> None:
    """Show the runs until all of them are done, or Ctrl-C."""
    if not args.runs:
        raise UsageError("diffit watch needs the folder of a run")
    if len(args.runs) > MOST:
        raise UsageError(f"{len(args.runs)} runs are too many to see; name at most {MOST}")
    if args.html is not None:
        _check(args.html)
    console = Console(highlight=False)
    views = _look(args)
    if args.once or not console.is_terminal:
        console.print(picture(views, console))
    else:
        _follow(args, views, console)
    if args.html is not None:
        print(f"wrote {args.html}")


def _follow(args: Args, views: list[View], console: Console) -> None:
    """Look again and again; Ctrl-C ends the looking, not the runs."""
    try:
        with Live(picture(views, console), console=console, auto_refresh=False) as live:
            while not all(view.done for view in views):
                time.sleep(args.interval)
                views = _look(args)
                live.update(picture(views, console), refresh=True)
    except KeyboardInterrupt:
        pass


def _look(args: Args) -> list[View]:
    views = [look(folder) for folder in args.runs]
    if args.html is not None:
        write_whole(args.html, draw_page(views))
    return views


def _check(html: Path) -> None:
    if html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {html} must end in .html")
    if not html.absolute().parent.is_dir() or not os.access(html.absolute().parent, os.W_OK):
        raise UsageError(f"--html {html} cannot be written there; name another folder")
    if html.is_dir() or (html.exists() and f"<title>{TITLE}" not in _head(html)):
        raise UsageError(f"--html {html} exists and is no page of `diffit watch`; name a new file")


def _head(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(1000).decode("utf-8", errors="replace")


def picture(views: list[View], console: Console) -> Columns:
    """All runs, side by side where the terminal is wide enough."""
    blocks = BLOCKS if console.encoding.lower().startswith("utf") else PLAIN
    width = max(48, min(100, console.width // len(views)))
    names = names_of(views)
    panels = [_panel(view, name, width, blocks) for view, name in zip(views, names, strict=True)]
    return Columns(panels, padding=0)


def _panel(view: View, name: str, width: int, blocks: str) -> Panel:
    """One run."""
    table = Table.grid(padding=(0, 1))
    for key, words in FIGURES.items():
        if points := view.points(key):
            values = [value for _, value in points]
            curve = sparkline(values, width - 36, blocks)
            table.add_row(words, Text(curve, "cyan"), shown(key, values[-1]))
    if levels := view.levels():
        ends = f"{levels[0]:.3g} ... {levels[-1]:.3g}"
        table.add_row("loss by level", Text(sparkline(levels, len(levels), blocks), "cyan"), ends)
    warnings = [Text(f"! {sentence}", "yellow") for sentence in view.warnings()]
    title = Text(f" {name}: {view.status} ")
    body = Group(Text(_progress(view)), table, *_places(view), *warnings)
    return Panel(body, title=title, title_align="left", width=width)


def _progress(view: View) -> str:
    total = view.config.train.images
    words = f"{view.images:,} of {total:,} images ({100 * view.images / total:.3g} %)"
    if view.done or math.isinf(view.left):
        return words
    return f"{words}, {duration(view.left)} left"


def _places(view: View) -> list[Text]:
    """Where the newest checkpoint and the newest pictures are."""
    found = []
    if view.checkpoints:
        found.append(Text(f"checkpoint at {view.checkpoints[-1]:,} images"))
    if view.snapshots:
        found.append(Text(f"pictures {view.snapshots[-1] / 'samples.png'}", overflow="fold"))
    return found


def sparkline(values: list[float], width: int, blocks: str = BLOCKS) -> str:
    """A curve of one line: means of equal parts; logarithmic if all values are positive."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    logarithmic = min(finite) > 0
    heights = [math.log(v) if logarithmic else v for v in finite]
    width = max(1, min(width, len(heights)))
    parts = [heights[i * len(heights) // width : (i + 1) * len(heights) // width]
             for i in range(width)]  # fmt: skip
    means = [math.fsum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-300):
        return blocks[3] * width
    top = len(blocks) - 1
    return "".join(blocks[round((mean - low) / (high - low) * top)] for mean in means)
