"""Command-line arguments as settings, by tyro; mistakes in one sentence."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from diffit.config import Settings, explain
from diffit.errors import UsageError

A = TypeVar("A", bound=Settings)


def read_arguments(kind: type[A], args: Sequence[str], *, prog: str, default: A | None = None) -> A:
    """Arguments as settings; UsageError in one sentence. `--help` prints and exits with 0.

    With ``default`` every field starts from it, and unions keep the kind that it has.
    """
    import tyro

    if any(a in ("-h", "--help") for a in args):
        tyro.cli(_fixed(kind), args=["--help"], prog=prog, default=_or_missing(default))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            parsed: A = tyro.cli(
                _fixed(kind), args=list(args), prog=prog, default=_or_missing(default)
            )
    except ValidationError as error:
        raise UsageError(explain(error, kind, source=prog)) from None
    except SystemExit:
        raise UsageError(f"{prog}: {_one_line(printed.getvalue())}") from None
    return parsed


def _fixed(kind: type[A]) -> Any:
    import tyro

    # Without this, unions of settings would become sub-commands and could not be overridden.
    return tyro.conf.AvoidSubcommands[kind]  # type: ignore[misc, valid-type]


def _or_missing(default: A | None) -> Any:
    import tyro

    return tyro.MISSING_NONPROP if default is None else default


def _one_line(box: str) -> str:
    """tyro's framed message as one sentence."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰"]
    rules = [i for i, line in enumerate(lines) if set(line) <= {"─"}]
    first = " ".join(lines[: rules[0] if rules else None])
    hint = next((i for i, line in enumerate(lines) if line.startswith("Perhaps you meant")), None)
    if hint is not None and hint + 1 < len(lines):
        first += f"; did you mean {lines[hint + 1].split()[0]}?"
    return first[:1].lower() + first[1:] if first else "the arguments cannot be read"
