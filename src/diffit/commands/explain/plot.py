"""`diffit explain plot FILES...`: certified accuracy of tables, robustness of evaluations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import field_validator

from diffit.commands.explain.arguments import PIXELS, check_out
from diffit.commands.explain.pictures import Panel, draw_panels
from diffit.config import Settings
from diffit.errors import DataError, UsageError
from diffit.explain.measures.curve import certified_curve, read_rows
from diffit.explain.units import Units, from_pm1, to_pm1

MAX_JSON = 1 << 26
"""Bytes; more is no file of results."""


class Plot(Settings):
    """Draw curves of certified accuracy, and how attacks change accuracy and maps.

    Tables are those of `diffit explain certify` and of the smoothing literature; results those of
    `diffit explain evaluate`.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES")]
    """Tables (.tsv), and results of an evaluation (.json)."""
    out: Path = Path("curves.png")
    """PNG file for the picture."""
    units: Units | None = None
    """Units of the radii in tables that lie alone, without the JSON file that `certify` writes."""
    show: Units = "01"
    """Units in which radii are drawn."""

    @field_validator("files")
    @classmethod
    def check_files(cls, files: tuple[Path, ...]) -> tuple[Path, ...]:
        """At least one."""
        if not files:
            raise ValueError("name tables (.tsv) of `certify` or results (.json) of `evaluate`")
        return files


def run_plot(args: Plot) -> None:
    """Read all files, then draw."""
    if args.out.suffix.lower() != ".png":
        raise UsageError(f"--out {args.out} must end in .png")
    check_out(args.out)
    tables = [path for path in args.files if path.suffix.lower() != ".json"]
    results = [path for path in args.files if path.suffix.lower() == ".json"]
    panels = []
    if tables:
        lines = {table_name(path, tables): _curve(path, args) for path in tables}
        panels.append(
            Panel("certified accuracy", f"l2 radius, {PIXELS[args.show]}", "accuracy", lines, True)
        )
    for path in results:
        panels += read_panels(path)
    draw_panels(args.out, panels)
    print(f"{args.out}: {len(panels)} {'chart' if len(panels) == 1 else 'charts'}")


def attack_panels(results: dict[str, Any]) -> list[Panel]:
    """Charts of an evaluation: accuracy, and overlap of each method, over the attack's eps."""
    scale = 255
    accuracy: dict[str, list[tuple[float, float]]] = {}
    overlaps: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in results["attacks"]:
        eps = row["eps"]["01"] * scale
        for way, value in row["accuracy"].items():
            accuracy.setdefault(way, []).append((eps, value))
        for method, ways in row["overlap"].items():
            for way, value in ways.items():
                overlaps.setdefault(method, {}).setdefault(way, []).append((eps, value))
    x = "attack, l-infinity eps in 1/255"
    panels = [Panel("accuracy under attack", x, "accuracy", accuracy)] if accuracy else []
    k = results["asked"]["k"]
    return panels + [
        Panel(f"{method}: overlap of the top {k}", x, "overlap with the clean map", ways)
        for method, ways in overlaps.items()
    ]


def read_panels(path: Path) -> list[Panel]:
    """Charts of the JSON file of an evaluation; DataError if it is none."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise DataError(f"{path} is larger than {MAX_JSON >> 20} MiB; it holds no results")
        panels = attack_panels(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        panels = []
    if not panels:
        raise DataError(f"{path} holds no results of `diffit explain evaluate`")
    return panels


def _curve(path: Path, args: Plot) -> list[tuple[float, float]]:
    radii, accuracy = certified_curve(read_rows(path))
    units = units_of(path) or args.units
    if units is None:
        raise UsageError(
            f"{path} does not say whether its radii are those of pixels in [0, 1] or in [-1, 1]; "
            "add --units 01 or --units pm1 (the literature's are 01)"
        )
    return [
        (from_pm1(to_pm1(radius, units), args.show), share)
        for radius, share in zip(radii, accuracy, strict=True)
    ]


def units_of(table: Path) -> Units | None:
    """The units that the JSON file beside a table states, None if there is none."""
    beside = table.with_suffix(".json")
    try:
        units: Units | None = json.loads(beside.read_text("utf-8"))["asked"]["units"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return units if units in PIXELS else None


def table_name(path: Path, among: list[Path]) -> str:
    """The shortest name that tells a table from the others."""
    kinds: list[Callable[[Path], str]] = [lambda p: p.stem, lambda p: f"{p.parent.name}/{p.stem}"]
    for name in kinds:
        if [name(other) for other in among].count(name(path)) == 1:
            return name(path)
    return str(path)
