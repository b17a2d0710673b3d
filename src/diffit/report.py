"""One self-contained HTML page of pictures, curves and tables; nothing is fetched from outside.

Each function returns a piece of HTML in which every text handed in is escaped; `page` joins the
pieces. Pictures are data URIs and curves are SVG, so that the file can be mailed and still read.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

Points = Sequence[tuple[float, float]]


class Tile(NamedTuple):
    """One headline figure."""

    value: str
    name: str
    note: str = ""


def page(title: str, lead: str, pieces: Iterable[str]) -> str:
    """A whole HTML document."""
    body = "\n".join(pieces)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *pieces: str, note: str = "") -> str:
    """A titled part of the page; ``note`` is a sentence below the title."""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{words}{''.join(pieces)}</section>"


def tiles(figures: Iterable[Tile]) -> str:
    """The headline figures side by side."""
    boxes = "".join(
        f"<div><strong>{escape(t.value)}</strong><span>{escape(t.name)}</span>"
        f"<small>{escape(t.note)}</small></div>"
        for t in figures
    )
    return f'<div class="tiles">{boxes}</div>'


def pictures(images: Iterable[tuple[np.ndarray, str]]) -> str:
    """Uint8 (C, H, W) images with captions, side by side where the screen is wide enough."""
    figures = "".join(
        f"<figure>{_img(image, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in images
    )
    return f'<div class="pictures">{figures}</div>'


def matrix(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[np.ndarray]]]) -> str:
    """Small uint8 (C, H, W) images in a table: titled columns, named rows."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{_img(image, name)}</td>" for image in images)
        + "</tr>"
        for name, images in rows
    )
    # Columns of one width, and on a small screen wide enough to see something: then it scrolls.
    style = f"min-width: {4.5 + 2.8 * len(columns):g}rem"
    return (
        f'<div class="wide"><table class="matrix" style="{style}">'
        f"<tr><th></th>{head}</tr>{body}</table></div>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; the first column names the row."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table class="plain"><tr>{top}</tr>{body}</table></div>'


def commands(lines: Iterable[str]) -> str:
    """Lines to type in a shell."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def details(summary: str, text: str) -> str:
    """A long text that stays folded until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def curve(series: Mapping[str, Points], *, x: str, y: str) -> str:
    """Lines over a linear x and a logarithmic y as SVG; points that are not finite are left out."""
    kept = {
        name: [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b) and b > 0]
        for name, points in series.items()
    }
    everything = [point for points in kept.values() for point in points]
    if not everything:
        return '<p class="note">There is nothing to draw yet.</p>'
    frame = _Frame.around(everything)
    lines = "".join(
        f'<polyline class="line s{i}" {_STROKE} points="{frame.path(points)}"/>'
        for i, points in enumerate(kept.values())
    )
    legend = "".join(
        f'<span class="s{i}">{escape(name)}</span>' for i, name in enumerate(kept) if len(kept) > 1
    )
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(y)} over {escape(x)}">{frame.grid()}{lines}'
        f'<text class="axis" x="{(_LEFT + _RIGHT) / 2:g}" y="{_HEIGHT - 6}" '
        f'text-anchor="middle">{escape(x)}</text>'
        f'<text class="axis" x="{_LEFT}" y="16">{escape(y)}</text></svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def heat(values: np.ndarray) -> np.ndarray:
    """(H, W) non-negative values as a uint8 (3, H, W) picture, from dark to light; 0 is dark."""
    top = float(values.max())
    scaled = values / top if top > 0 else np.zeros_like(values, dtype=np.float64)
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(scaled, stops, colours) for colours in np.array(_HEAT).T]
    return np.round(np.stack(channels)).astype(np.uint8)


def count(number: float) -> str:
    """A number in few characters: 1234 is `1,234`, 250000 is `250k`, 3200000 is `3.2M`."""
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(number) >= least:
            return f"{number / size:.1f}".removesuffix(".0") + unit
    return f"{number:,.4g}" if number % 1 else f"{int(number):,}"


# In the attributes too, for viewers that know no style sheets inside SVG.
_STROKE = 'fill="none" stroke="currentColor"'
_HEAT = ((10, 8, 36), (76, 20, 110), (176, 48, 106), (240, 122, 56), (253, 244, 176))
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 320, 64, 704, 30, 268


class _Frame(NamedTuple):
    """The box of a chart: x linear from 0, y logarithmic."""

    x_max: float
    y_min: float
    y_max: float

    @classmethod
    def around(cls, points: Points) -> "_Frame":
        low, high = min(b for _, b in points), max(b for _, b in points)
        room = (high / low) ** 0.06 if high > low else 1.5
        return cls(max(max(a for a, _ in points), 1e-9), low / room, high * room)

    def place(self, a: float, b: float) -> tuple[float, float]:
        across = a / self.x_max
        up = math.log(b / self.y_min) / math.log(self.y_max / self.y_min)
        return _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)

    def path(self, points: Points) -> str:
        return " ".join("{:.1f},{:.1f}".format(*self.place(a, b)) for a, b in points)

    def grid(self) -> str:
        pieces = []
        for value in _log_ticks(self.y_min, self.y_max):
            _, y = self.place(0, value)
            pieces.append(
                f'<path class="rule" {_STROKE} d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
                f'<text x="{_LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{value:.3g}</text>'
            )
        for value in _ticks(self.x_max):
            x, _ = self.place(value, self.y_max)
            pieces.append(
                f'<text x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{count(value)}</text>'
            )
        return "".join(pieces)


def _ticks(top: float) -> list[float]:
    """About five round numbers from 0 to ``top``."""
    power: float = 10.0 ** math.floor(math.log10(top / 4))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= top / 5)
    return [i * step for i in range(int(top / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Three to ten round numbers between ``low`` and ``high``, evenly spread in their logarithm."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [d * 10.0**p for p in decades for d in digits if low <= d * 10.0**p <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 10)]
    return [low * (high / low) ** (i / 3) for i in range(1, 3)]


def _img(image: np.ndarray, words: str) -> str:
    _, height, width = image.shape
    # Small pictures are enlarged by the browser; smoothing would blur the pixels away.
    kind = ' class="pixels"' if max(height, width) <= 512 else ""
    return (
        f'<img{kind} alt="{escape(words)}" width="{width}" height="{height}" src="{_uri(image)}">'
    )


def _uri(image: np.ndarray) -> str:
    array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_STYLE = """
:root { --ink: #1c2024; --soft: #5f6b76; --paper: #fbfbfa; --card: #ffffff; --rule: #e3e6e8;
  --s0: #2a6fdb; --s1: #d9822b; --s2: #2e9e5b; --s3: #a04fc4; --s4: #c43d5c; --s5: #3a9aa8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa4ae; --paper: #14171a; --card: #1c2024; --rule: #30363c;
    --s0: #6fa8ff; --s1: #f0ad62; --s2: #6fce94; --s3: #cf93ea; --s4: #f08ca3; --s5: #78d0dd; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; margin: 0 0 .5rem;
  letter-spacing: -.02em; }
h2 { font-size: 1.25rem; margin: 0 0 .35rem; }
.lead { font-size: 1.1rem; color: var(--soft); margin: 0 0 1.5rem; max-width: 46rem; }
.note { color: var(--soft); margin: 0 0 1rem; max-width: 46rem; }
section { margin: 2.75rem 0 0; }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.tiles div { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem;
  padding: .9rem 1rem; display: flex; flex-direction: column; }
.tiles strong { font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles small { color: var(--soft); }
.pictures { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
figure { margin: 0; }
.pictures img { width: 100%; height: auto; border-radius: .5rem; display: block; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
.pixels { image-rendering: pixelated; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.plain { width: 100%; }
.plain th, .plain td { text-align: left; padding: .45rem .9rem .45rem 0; font-weight: 400;
  border-bottom: 1px solid var(--rule); }
.plain tr:first-child th { color: var(--soft); font-size: .9rem; }
.matrix { width: 100%; table-layout: fixed; }
.matrix tr:first-child th:first-child { width: 4.5rem; }
.matrix th { font-weight: 400; font-size: .8rem; color: var(--soft); padding: .15rem .3rem;
  white-space: nowrap; }
.matrix tr > th:first-child { text-align: right; position: sticky; left: 0;
  background: var(--paper); }
.matrix td { padding: .1rem; }
.matrix img { width: 100%; height: auto; display: block; border-radius: .2rem; }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem;
  padding: .75rem; }
.chart svg { width: 100%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 13px; }
.rule { color: var(--rule); }
.line { stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem;
  padding: 0 .5rem; }
.legend span::before { content: ""; display: inline-block; width: 1.1em; height: .2em;
  background: currentColor; vertical-align: middle; margin-right: .4em; border-radius: 1em; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem;
  padding: .9rem 1rem; overflow-x: auto; font-size: .88rem; line-height: 1.5; }
details { margin-top: .75rem; } summary { cursor: pointer; color: var(--soft); }
@media (max-width: 34rem) { .chart text { font-size: 22px; } .line { stroke-width: 3; } }
"""
