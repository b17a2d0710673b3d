"""Command-line arguments as settings, by tyro; mistakes in one sentence."""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from diffit.config import Settings, explain, models_in, nearest
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
    except (ValidationError, SystemExit) as error:
        raise UsageError(_sentence(kind, error, printed.getvalue(), prog)) from None
    return parsed


def _fixed(kind: type[A]) -> Any:
    import tyro

    # Without this, unions of settings would become sub-commands and could not be overridden.
    return tyro.conf.AvoidSubcommands[kind]  # type: ignore[valid-type, misc]


def _or_missing(default: A | None) -> Any:
    import tyro

    return tyro.MISSING_NONPROP if default is None else default


def _sentence(kind: type[Settings], error: BaseException, printed: str, prog: str) -> str:
    source = prog.removeprefix("diffit ")
    # tyro exits on a value that pydantic refuses, but leaves pydantic's error in the chain.
    for cause in _chain(error):
        if isinstance(cause, ValidationError):
            owner, path = _nested(kind, cause.title)
            return explain(cause, owner, source=source, path=path)
    return f"{source}: {_one_line(printed)}"


def _nested(kind: type[Settings], name: str) -> tuple[type[Settings], tuple[str, ...]]:
    """The settings class called ``name`` inside ``kind`` and its path as the user writes it."""
    import tyro

    waiting: list[tuple[type[Settings], tuple[str, ...]]] = [(kind, ())]
    while waiting:
        owner, path = waiting.pop(0)
        if owner.__name__ == name:
            return owner, path
        for field, info in owner.model_fields.items():
            bare = tyro.conf.OmitArgPrefixes in info.metadata
            inner = path if bare else (*path, field)
            waiting += [(model, inner) for model in models_in(info.annotation)]
    return kind, ()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(box: str) -> str:
    """tyro's framed message as one sentence.

    The box holds a title, the message, then help; rules stand between them. Names of options
    are indented below the message, their help texts below the names.
    """
    lines = [line.strip("│╭╮╰╯").rstrip() for line in box.splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines:
        if set(line.strip()) <= set("-─") and line.strip():
            parts.append([])
        elif line.strip():
            parts[-1].append(line)
    message = parts[1] if len(parts) > 1 else parts[0]
    if not message:
        return "the arguments cannot be read"
    if message[0].strip().startswith("Missing from"):
        return f"{', '.join(_options(message[1:]))} must be given"
    text = _plain(" ".join(line.strip() for line in message))
    hints = [part for part in parts if part and part[0].strip().startswith("Perhaps you meant")]
    return f"{text}; did you mean {_options(hints[0][1:])[0]}?" if hints else text


def _options(lines: Sequence[str]) -> list[str]:
    """The names at the least indentation of a help text."""
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    names = [line.strip() for line in lines if len(line) - len(line.lstrip()) == indent]
    return [name.split()[0].rstrip(",") for name in names]


def _choices(found: re.Match[str]) -> str:
    # tyro lists them as they come out of a set, which is another order every time.
    given, *names = re.findall(r"'([^']*)'", f"{found[1].partition(' for ')[0]} {found[2]}")
    return f"{found[1]}; {nearest(given, [name for name in names if name != 'None'])}"


def _plain(text: str) -> str:
    """Python's and tyro's words for a mistake in those of the user."""
    choice = r"(invalid choice '.*' for argument '\S+')\. Expected one of (.*)"
    text = re.sub(choice, _choices, text, flags=re.IGNORECASE)
    text = re.sub(r"^Error parsing (\S+): ", r"\1: ", text)
    text = re.sub(
        r"no type matching (\S+) could be instantiated from \[(.*?)\].*", r"\2 is no \1", text
    )
    text = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", text)
    text = re.sub(r"could not convert string to float: (.*)", r"\1 is no number", text)
    text = re.sub(r"Missing value for argument '(\S+)'.*", r"\1 needs a value", text)
    text = text.rstrip(".")
    return text if text.startswith("-") else text[:1].lower() + text[1:]
