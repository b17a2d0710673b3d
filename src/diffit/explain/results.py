"""Results as JSON: every length in both units, nothing that JSON has no word for."""

import dataclasses
import math
from typing import Any

from diffit.explain.units import in_both

LENGTHS = frozenset({"sigma", "radius_l2", "radius_linf", "prediction_radius_l2"})
"""Fields that are lengths of pixels in [-1, 1]."""


def as_json(result: Any) -> dict[str, Any]:
    """A result of `certify`, `region` or `smoothed` as a dictionary for `json.dumps`.

    A length becomes {"01": ..., "pm1": ...}: for pixels in [0, 1] and in [-1, 1]. An infinite
    one, of a condition that nothing can break, becomes the word "infinite".
    """
    stated = {
        field.name: _value(field.name, getattr(result, field.name))
        for field in dataclasses.fields(result)
    }
    certified = getattr(result, "certified", None)
    return stated if certified is None else stated | {"certified": certified}


def _value(name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_json(value)
    if name in LENGTHS:
        return {units: _number(length) for units, length in in_both(value).items()}
    if isinstance(value, tuple | list):
        return [_value("", one) for one in value]
    return _number(value) if isinstance(value, float) else value


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else "infinite"
