"""The passport of a measurement: every figure with all that it depends on, as JSON."""

import json
import platform
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

import diffit
from diffit.config import Settings
from diffit.data.images import write_atomic
from diffit.errors import DataError
from diffit.evaluation.intervals import Interval

FORMAT = "diffit-passport-2"


class Figure(Settings):
    """One measured figure."""

    name: str
    """Its full name, which tells the features unless they are Inception's 2048: `FID`."""
    metric: str
    """Its short name, as given to --metrics."""
    features: str
    """Name of the features, as in the passport's list of them."""
    protocol: str
    """How images were resized; figures of different protocols do not compare."""
    value: float
    interval: Interval | None
    samples: int
    """How many samples it was computed from."""
    reference: int | None
    """How many reference images; None if the statistics do not say."""
    better: Literal["lower", "higher"]
    settings: dict[str, int | float | str]
    """What else the figure depends on, such as the number of neighbours."""


class Images(Settings):
    """One side of a comparison."""

    path: str
    kind: Literal["images", "statistics"]
    count: int | None
    shape: tuple[int, int, int] | None
    """(C, H, W); None for statistics."""
    hash: str
    """sha256 of all pixels in order, or of the file of statistics."""


class FeatureInfo(Settings):
    """Which features were compared."""

    name: str
    dims: int
    hash: str
    """sha256 of the file of weights."""
    protocol: str
    resize: str
    used: str = ""
    """Whose figures are measured this way."""


class Passport(Settings):
    """A measurement that can be repeated and compared."""

    format: str = FORMAT
    figures: tuple[Figure, ...]
    samples: Images
    reference: Images
    features: tuple[FeatureInfo, ...]
    generation: dict[str, Any]
    """How the samples were drawn: sampler, steps, guidance, seeds ...; empty if unknown."""
    seed: int
    """Of the bootstrap and of random subsets."""
    versions: dict[str, str]
    notes: tuple[str, ...]
    """What a reader of the figures must know."""

    def value(self, metric: str, protocol: str | None = None) -> float:
        """The value of a figure by its short name, e.g. `fd`; KeyError if it was not measured.

        Of several protocols the one asked for, by default the first.
        """
        for figure in self.figures:
            if figure.metric == metric and protocol in (None, figure.protocol):
                return figure.value
        raise KeyError(metric)


def write_passport(path: Path, passport: Passport) -> None:
    """Write a passport as JSON; the file appears only when complete."""
    text = json.dumps(passport.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
    write_atomic(path, text.encode())


def read_passport(path: Path) -> Passport:
    """A passport from its file; DataError if it is none, or one of another format."""
    data = _read_json(path)
    found = data.get("format")
    if found != FORMAT:
        raise DataError(f"{path} is no passport of format {FORMAT} (it says {found!r})")
    try:
        return Passport.model_validate(data)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{path} is a damaged passport, see {place!r}; measure again") from None


def read_generation(record: Path | None) -> dict[str, Any]:
    """How samples were drawn, from the file that `diffit sample` wrote; empty if there is none."""
    return {} if record is None else _read_json(record)


def versions() -> dict[str, str]:
    """Versions of all that the figures were computed with."""
    return {
        "diffit": diffit.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError):
        raise DataError(f"{path} is no valid JSON; write it again") from None
    if not isinstance(data, dict):
        raise DataError(f"{path} must hold a JSON object")
    return data
