"""Small real data sets inside the package; licences and authors in assets/LICENSES.md."""

import io
from importlib.resources import files

import numpy as np

from diffit.config import nearest
from diffit.data.arrays import Arrays
from diffit.data.images import read_image
from diffit.errors import DataError

PREFIX = "builtin:"
SIDE = 32
"""Side of a colour patch."""


def open_builtin(
    name: str, *, size: int | None = None, channels: int | None = None, labels: bool = True
) -> Arrays:
    """`digits` (8 x 8, grey) or `patches` (32 x 32, RGB); `-test` appended: the held-out part."""
    if name not in BUILTIN:
        raise DataError(f"there is no {PREFIX}{name}; {nearest(name, list(BUILTIN))}")
    read, classes = BUILTIN[name.removesuffix("-test")]
    images, values, held_out = read()
    chosen = held_out if name.endswith("-test") else ~held_out
    return Arrays(
        images[chosen],
        values[chosen] if labels else None,
        classes if labels else (),
        size=size,
        channels=channels,
    )


def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = _table("digits.npz")
    return table["images"][..., None], table["labels"], table["held_out"]


def _patches() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches are cut from one sheet, since they overlap: it takes a tenth of their room."""
    table = _table("patches.npz")
    sheet = read_image(_asset("patches.png"), name="patches.png").transpose(1, 2, 0)
    images = [sheet[row : row + SIDE, left : left + SIDE] for row, left in table["corners"]]
    return np.stack(images), table["labels"], table["held_out"]


_DIGITS = (_digits, tuple("0123456789"))
_PATCHES = (_patches, ("china", "flower"))
BUILTIN = {
    "digits": _DIGITS,
    "digits-test": _DIGITS,
    "patches": _PATCHES,
    "patches-test": _PATCHES,
}


def _table(name: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(_asset(name)), allow_pickle=False) as table:
        return dict(table)


def _asset(name: str) -> bytes:
    return (files("diffit") / "assets" / name).read_bytes()
