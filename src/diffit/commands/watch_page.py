"""The page of `diffit watch --html`: one or several runs in one file."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffit.report import Tile, count, curve, page, pictures, section, table, tiles
from diffit.training.console import duration
from diffit.training.watching import FIGURES, View, shown

TITLE = "diffit watch"
"""Begins the title of every page: how such a page is told from other files."""
POINTS = 600
"""Points of a curve; more cannot be seen."""
SHOWN = 3
"""Snapshots of one run: the newest, and as many as fit on the way to it."""
MOST_PIXELS = 1 << 24
"""Pictures larger than this are left out."""


def draw_page(views: Sequence[View]) -> str:
    """The whole page."""
    named = dict(zip(names_of(views), views, strict=True))
    pieces = [_tiles(views[0])] if len(views) == 1 else [section("Runs", _table(named))]
    warnings = [f"{name}: {words}" for name, view in named.items() for words in view.warnings()]
    if warnings:
        pieces.append(section("Deserves a look", table(["warning"], [[w] for w in warnings])))
    for key, words in FIGURES.items():
        series = {name: _thin(view.points(key)) for name, view in named.items()}
        if any(series.values()):
            unit = " in bytes" if key == "memory" else ""
            pieces.append(section(words.capitalize(), curve(series, x="images", y=words + unit)))
    if levels := _levels(named):
        pieces.insert(2, section("Loss by noise level", levels, note=_LEVELS))
    pieces += [piece for name, view in named.items() if (piece := _pictures(name, view))]
    return page(f"{TITLE}: {', '.join(named)}", _lead(views), pieces)


_LEVELS = "The levels of the training law in groups of equal share, the lowest noise first."


def names_of(views: Sequence[View]) -> list[str]:
    """What the runs are called: their folders' names, or paths where these are the same."""
    names = [view.folder.resolve().name for view in views]
    twice = {name for name, n in Counter(names).items() if n > 1}
    chosen = [
        str(view.folder) if name in twice else name for name, view in zip(names, views, strict=True)
    ]
    return [f"{n} ({i})" if chosen.count(n) > 1 else n for i, n in enumerate(chosen, 1)]


def _lead(views: Sequence[View]) -> str:
    if len(views) > 1:
        return f"{len(views)} runs beside each other."
    view, train = views[0], views[0].config.train
    left = "" if view.done or math.isinf(view.left) else f", {duration(view.left)} left"
    return (
        f"{view.config.model.network.name}, {view.status}: {view.images:,} of {train.images:,} "
        f"images in batches of {train.batch}{left}."
    )


def _tiles(view: View) -> str:
    found = [
        Tile(shown(key, points[-1][1]), words)
        for key, words in FIGURES.items()
        if (points := view.points(key))
    ]
    return tiles([Tile(count(view.images), "images", view.status), *found])


def _table(named: dict[str, View]) -> str:
    keys = [key for key in FIGURES if any(view.points(key) for view in named.values())]
    rows = []
    for name, view in named.items():
        last = [points[-1][1] if (points := view.points(key)) else None for key in keys]
        cells = ["" if x is None else shown(key, x) for key, x in zip(keys, last, strict=True)]
        rows.append([name, view.status, f"{view.images:,}", *cells])
    return table(["run", "status", "images", *(FIGURES[key] for key in keys)], rows)


def _levels(named: dict[str, View]) -> str:
    """Loss by noise level: of one run on its way, of several at their last lines."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name, view in named.items():
        last = len(view.lines) - 1
        places = sorted({last // 10, last // 2, last}) if len(named) == 1 else [last]
        for place in places if last >= 0 else []:
            words = name if len(named) > 1 else f"{view.lines[place]['images']:,} images"
            series[words] = list(enumerate(view.levels(place), 1))
    if not any(series.values()):
        return ""
    return curve(series, x="noise level, low to high", y="loss")


def _pictures(name: str, view: View) -> str:
    last = len(view.snapshots) - 1
    places = sorted({last * i // (SHOWN - 1) for i in range(SHOWN)}) if last >= 0 else []
    found = []
    for place in places:
        folder = view.snapshots[place]
        image = _read(folder / "samples.png")
        if image is not None:
            found.append((image, f"drawn at {int(folder.name):,} images"))
    if last >= 0 and (real := _read(view.snapshots[last] / "real.png")) is not None:
        found.append((real, "real"))
    return section(f"Pictures of {name}", pictures(found)) if found else ""


def _read(path: Path) -> np.ndarray | None:
    """A picture as uint8 (C, H, W); None if it is not there, not whole or very large."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `POINTS` of them, the last one kept."""
    step = math.ceil(len(points) / POINTS) or 1
    return list(points[::-1][::step][::-1])
