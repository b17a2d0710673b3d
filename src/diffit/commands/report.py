"""`diffit report compare A.json B.json`: why two measurements differ."""

import os
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from diffit import report
from diffit.config import Settings
from diffit.data.images import write_atomic
from diffit.errors import UsageError
from diffit.evaluation.comparison import MEANING, Comparison, compare_passports
from diffit.evaluation.passport import read_passport


class CompareArgs(Settings):
    """Explain the gap between two results of `diffit evaluate`."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A.json")]
    """Passport written by `diffit evaluate --out`."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B.json")]
    """Another one."""
    out: Path | None = None
    """New HTML file with the same tables."""


def compare(args: CompareArgs) -> None:
    """Print both, what differs, and what that means."""
    if args.out is not None:
        _check(args.out)
    found = compare_passports(read_passport(args.first), read_passport(args.second))
    names = _names(args)
    show(found, names, Console())
    if args.out is not None:
        write_atomic(args.out, page(found, names).encode())
        print(f"wrote {args.out}")


VERBS = {"compare": (CompareArgs, compare)}


def show(found: Comparison, names: tuple[str, str], console: Console) -> None:
    """The comparison as tables."""
    table = Table("figure", *names, "gap", "what the intervals say")
    for row in _figures(found):
        table.add_row(*row)
    console.print(table)
    if found.alone:
        console.print(f"only one of them has: {', '.join(dict.fromkeys(found.alone))}")
    if found.differences:
        table = Table("differs", *names, "what it does")
        for row in _differences(found):
            table.add_row(*row)
        console.print(table)
    console.print(found.conclusion, markup=False, highlight=False, soft_wrap=True)


def page(found: Comparison, names: tuple[str, str]) -> str:
    """The comparison as one HTML page."""
    return report.page(
        "Two measurements",
        found.conclusion,
        [
            report.section(
                "Figures", report.table(["figure", *names, "gap", "verdict"], _figures(found))
            ),
            report.section(
                "Differences",
                report.table(["differs", *names, "what it does"], _differences(found)),
            ),
        ],
    )


def _figures(found: Comparison) -> list[list[str]]:
    rows = []
    for pair in found.pairs:
        a, b = pair.first, pair.second
        name = a.name if a.protocol == b.protocol else f"{a.metric} ({a.protocol}, {b.protocol})"
        same = a.protocol == b.protocol and a.features == b.features
        verdict = pair.verdict if same else "not measured the same way"
        rows.append([name, f"{a.value:.4g}", f"{b.value:.4g}", f"{pair.gap:+.3g}", verdict])
    return rows


def _differences(found: Comparison) -> list[list[str]]:
    return [[d.what, d.first, d.second, f"{MEANING[d.weight]}: {d.why}"] for d in found.differences]


def _names(args: CompareArgs) -> tuple[str, str]:
    """What the two are called: as short as tells them apart."""
    if args.first.stem != args.second.stem:
        return args.first.stem, args.second.stem
    return str(args.first), str(args.second)


def _check(out: Path) -> None:
    if out.exists():
        raise UsageError(f"--out {out} exists already; name a new file")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out} must end in .html")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise UsageError(f"--out {out} cannot be written there; name another folder")
