"""Command-line arguments: files overridden by options, and one sentence per mistake."""

from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
import tyro
from pydantic import Field, model_validator

from diffit.arguments import read_arguments
from diffit.config import Settings
from diffit.errors import UsageError


class Small(Settings):
    name: Literal["small"] = "small"
    width: int = Field(8, ge=1)


class Wide(Settings):
    name: Literal["wide"] = "wide"
    depth: int = 2


class Sampling(Settings):
    steps: int = Field(18, ge=1)
    """Number of steps."""
    eta: float | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.eta is not None and self.eta > self.steps:
            raise ValueError(f"eta {self.eta} is larger than steps {self.steps}")
        return self


class Args(Settings):
    """Draw something."""

    source: tyro.conf.Positional[Path]
    """Where from."""
    out: Path
    """Where to."""
    network: Annotated[Small | Wide, Field(discriminator="name")] = Small()
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = Sampling()
    kind: Literal["a", "b"] = "a"
    zip: bool = False


def read(*args: str, default: Args | None = None) -> Args:
    return read_arguments(Args, args, prog="diffit draw", default=default)


def test_options_override_their_defaults() -> None:
    args = read("in", "--out", "x", "--network.width", "4", "--steps", "3", "--zip")
    assert args.source == Path("in")
    assert args.network == Small(width=4)
    assert args.sampling.steps == 3
    assert args.zip is True


def test_unions_keep_the_kind_of_the_default() -> None:
    default = Args(source=Path("in"), out=Path("x"), network=Wide(depth=5))
    assert read("--network.depth", "6", default=default).network == Wide(depth=6)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "PATH, --out must be given"),
        (["in"], "--out must be given"),
        (["in", "--out"], "--out needs a value"),
        (["in", "--out", "x", "extra"], "unrecognized options: extra"),
        (["in", "--out", "x", "--stepz", "3"], "unrecognized options: --stepz, 3; did you mean"),
        (["in", "--out", "x", "--steps", "many"], "--steps: 'many' is no whole number"),
        (["in", "--out", "x", "--eta", "big"], "--eta: 'big' is no {None}|FLOAT"),
        (["in", "--out", "x", "--steps", "0"], "steps is 0; it must be greater than or equal to 1"),
        (["in", "--out", "x", "--eta", "nan"], "eta is nan; it must be a finite number"),
        (["in", "--out", "x", "--eta", "19"], "eta 19.0 is larger than steps 18"),
        (["in", "--out", "x", "--network.width", "0"], "network.width is 0; it must be"),
        (["in", "--out", "x", "--kind", "c"], "invalid choice 'c' for argument '--kind'"),
    ],
)
def test_each_mistake_has_its_sentence(args: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        read(*args)
    text = str(error.value)
    assert text.startswith(f"draw: {sentence}")
    assert "\n" not in text
    assert "---" not in text


def test_a_misspelt_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean --steps\?"):
        read("in", "--out", "x", "--stepz", "3")


def test_help_shows_docstrings_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    default = Args(source=Path("in"), out=Path("x"), sampling=Sampling(steps=5))
    with pytest.raises(SystemExit) as stop:
        read("--help", default=default)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Number of steps. (default: 5)" in shown
    assert "Draw something." in shown
