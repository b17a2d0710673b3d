"""Tables of certified predictions, and the curve of certified accuracy that is drawn of them.

The file is that of the smoothing literature (Cohen et al., arXiv:1902.02918): tab-separated, a row
per image under `idx label predict radius correct time`, so that its plotting scripts read ours and
ours read theirs. A process that is killed leaves at most its last row torn; a torn row counts as
not written, and whoever continues the file writes it again.
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from diffit.errors import DataError

HEADER = ("idx", "label", "predict", "radius", "correct", "time")
ABSTAIN = -1
MAX_BYTES = 1 << 28
"""More is no table of certificates: 256 MiB hold millions of rows."""
_TIME = re.compile(r"(?:(\d+) days?, )?(?:(\d+):(\d+):)?(\d+(?:\.\d+)?)")


class Row(NamedTuple):
    """The certified prediction of one image.

    Attributes:
        idx: number of the image in its set.
        label: its true class.
        predict: the certified class, `ABSTAIN` for none.
        radius: l2 radius within which no change of the image alters it, in the unit that the run
            was told, [0, 1] in the literature; 0 where it abstains.
        correct: whether ``predict`` is ``label``.
        seconds: time it took.
    """

    idx: int
    label: int
    predict: int
    radius: float
    correct: bool
    seconds: float


def certified_accuracy(rows: Sequence[Row], radii: Iterable[float]) -> list[float]:
    """Share of the images that are certified correct at each radius at least."""
    if not rows:
        raise DataError("the table holds no certified image yet; there is no accuracy to draw")
    held = sorted(row.radius if row.correct else -math.inf for row in rows)
    return [sum(r >= radius for r in held) / len(held) for radius in radii]


def certified_curve(rows: Sequence[Row], points: int = 200) -> tuple[list[float], list[float]]:
    """Radii from 0 to just past the largest finite one, and `certified_accuracy` at each."""
    largest = max((r.radius for r in rows if r.correct and math.isfinite(r.radius)), default=0.0)
    end = 1.05 * largest or 1.0
    radii = [end * i / (points - 1) for i in range(points)]
    return radii, certified_accuracy(rows, radii)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table in the order of the file, without a torn last one.

    DataError, with the line, for anything that is no such table.
    """
    return [_parse(line, path, n) for n, line in enumerate(_lines(path)[1:], 2) if line.strip()]


class RowWriter:
    """Appends rows to a table; each is on the disk before the next is begun.

    Args:
        path: a new file, or one that a killed process left: ``done`` lists what it holds.
    """

    def __init__(self, path: Path) -> None:
        whole = _refuse_other(path) if path.exists() else 0
        self.done = read_rows(path) if whole else []
        self._numbers = {row.idx for row in self.done}
        if len(self._numbers) < len(self.done):
            raise DataError(f"{path} holds an image twice; remove it and certify again")
        try:
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.seek(whole)
            self._file.truncate()  # the torn row
            if not whole:
                self._write(HEADER)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from None

    def write(self, row: Row) -> None:
        """Append a row."""
        if row.idx in self._numbers:
            raise ValueError(f"image {row.idx} is in the table already")
        values = (row.idx, row.label, row.predict, repr(row.radius), int(row.correct))
        self._write((*values, timedelta(seconds=row.seconds)))
        self.done.append(row)
        self._numbers.add(row.idx)

    def _write(self, values: Iterable[object]) -> None:
        self._file.write(("\t".join(map(str, values)) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _refuse_other(path: Path) -> int:
    """Bytes up to the end of the last whole line; DataError unless the file begins as a table."""
    content, header = _bytes(path), ("\t".join(HEADER) + "\n").encode()
    if content[: len(header)] != header[: len(content)]:
        raise DataError(f"{path} exists and is no table of certificates; name another file")
    return content.rfind(b"\n") + 1


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than 256 MiB; this is no table of certificates")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; `diffit explain certify` writes it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _lines(path: Path) -> list[str]:
    content = _bytes(path)
    try:
        lines = content[: content.rfind(b"\n") + 1].decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    if not lines or tuple(lines[0].split("\t")) != HEADER:
        raise DataError(
            f"{path} is no table of certificates: its first line must be "
            f"{' '.join(HEADER)!r}, separated by tabs"
        )
    return lines


def _parse(line: str, path: Path, number: int) -> Row:
    try:
        idx, label, predict, radius, correct, time = line.split("\t")
        row = Row(
            int(idx), int(label), int(predict), float(radius), bool(int(correct)), _seconds(time)
        )
    except ValueError:
        raise DataError(
            f"line {number} of {path} is no row of {' '.join(HEADER)!r}: {line[:80]!r}"
        ) from None
    if not row.radius >= 0:
        raise DataError(f"line {number} of {path} has the radius {radius}; it must be 0 or more")
    return row


def _seconds(text: str) -> float:
    """Seconds of `3.2`, `0:00:03.2` or `1 day, 0:00:03.2`: what `str(timedelta)` writes."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
