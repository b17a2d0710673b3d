"""The command line as a whole: verbs, exit codes, and how fast it starts."""

import importlib
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import tyro

from diffit import __version__
from diffit.cli import VERBS, main
from diffit.config import Settings, models_in
from diffit.errors import DataError


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_import_brings_nothing_heavy() -> None:
    # `import diffit` may take 0.3 s on top of torch; without these it takes milliseconds.
    heavy = "('torch', 'numpy', 'matplotlib', 'pydantic', 'yaml', 'tyro', 'rich', 'PIL')"
    code = f"import sys, diffit; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from diffit.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    assert run_python(code).strip().endswith("[]")


def test_the_package_offers_load_and_generate() -> None:
    code = "import diffit; print(callable(diffit.load), callable(diffit.generate))"
    assert run_python(code).strip() == "True True"


def test_other_attributes_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        importlib.import_module("diffit").lod  # noqa: B018


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_verb(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    shown = capsys.readouterr().out
    for verb, text in VERBS.items():
        assert f"  {verb} " in shown
        assert text in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffit {__version__}\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["smaple"], "there is no command 'smaple'; did you mean 'sample'?"),
        (["zzzzzz"], "there is no command 'zzzzzz'; choose from "),
        (["data"], "data needs one of: "),
        (["data", "inspekt"], "there is no command diffit data 'inspekt'; did you mean 'inspect'?"),
    ],
)
def test_unknown_verbs_are_answered(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"diffit: {sentence}")
    assert shown.err.count("\n") == 1
    assert not shown.out


def options_of(kind: type[Settings], prefix: str = "") -> Iterator[str]:
    """The options of a settings class, unions left out: which they have depends on their kind."""
    for name, info in kind.model_fields.items():
        renamed = [m.name for m in info.metadata if getattr(m, "name", None) is not None]
        name = renamed[0] if renamed else name
        bare = tyro.conf.OmitArgPrefixes in info.metadata or not name
        if tyro.conf.Positional in info.metadata or tyro.conf.Fixed in info.metadata:
            continue
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            yield from options_of(info.annotation, prefix if bare else f"{prefix}{name}.")
        elif not list(models_in(info.annotation)):
            yield f"--{prefix}{name}".replace("_", "-")


def verbs() -> Iterator[tuple[list[str], type[Settings]]]:
    """What to type for each verb, and the settings it reads."""
    for verb in VERBS:
        module = importlib.import_module(f"diffit.commands.{verb}")
        if hasattr(module, "VERBS"):
            yield from (([verb, sub], kind) for sub, (kind, _) in module.VERBS.items())
        else:
            # The options of a training run depend on the configuration, which comes first.
            yield ([verb, "diffit-digits"] if verb == "train" else [verb]), module.Args


@pytest.mark.parametrize(
    ("words", "kind"), list(verbs()), ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_help_of_each_verb_mentions_every_option(
    words: list[str], kind: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert (kind.__doc__ or "").splitlines()[0] in shown
    for option in options_of(kind):
        assert re.search(re.escape(option) + r"[ ,\n]", shown), option


def command(run: object) -> SimpleNamespace:
    class Args(Settings):
        """A verb for this test."""

    return SimpleNamespace(Args=Args, run=run)


def stop_with(error: BaseException) -> object:
    def run(_: Settings) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DataError("cats.zip is damaged; fetch it again"), 2, "cats.zip is damaged; fetch it"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "diffit.commands.info", command(stop_with(error)))
    assert main(["info"]) == code
    assert capsys.readouterr().err.startswith(f"diffit: {sentence}")


def test_mistakes_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    run = stop_with(ZeroDivisionError())
    monkeypatch.setitem(sys.modules, "diffit.commands.info", command(run))
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_warnings_are_one_line_without_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Settings) -> None:
        warnings.warn("the newest checkpoint is damaged; passed over", stacklevel=2)

    monkeypatch.setitem(sys.modules, "diffit.commands.info", command(run))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["info"]) == 0
    assert capsys.readouterr().err == (
        "diffit: note: the newest checkpoint is damaged; passed over\n"
    )


def test_a_closed_pipe_ends_quietly() -> None:
    code = (
        "import sys; from types import SimpleNamespace; from diffit.cli import main, VERBS; "
        "sys.modules['diffit.commands.info'] = SimpleNamespace("
        "read=lambda rest, prog: None, run=lambda _: print('x' * 10_000_000, flush=True)); "
        "sys.exit(main(['info']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diffit", "sampl"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "diffit: there is no command 'sampl'; did you mean 'sample'?\n"
