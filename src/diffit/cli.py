"""The command line: `diffit VERB ...`. Only the chosen verb's module is imported."""

import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from diffit import __version__
from diffit.arguments import read_arguments
from diffit.config import Settings, nearest
from diffit.errors import DiffitError, UsageError

VERBS = {
    "demo": "train, sample and evaluate on real images that ship with the package",
    "train": "train a model from a configuration file or a preset",
    "watch": "look on while a model is trained: curves, figures, warnings, a page",
    "sample": "draw images from a checkpoint",
    "restore": "denoise, enlarge, fill in, deblur, colourise images with a trained model",
    "evaluate": "measure images against a reference: FID, KID, precision, recall, ...",
    "data": "look at a data set, pack or encode it: `data inspect`, `data pack`, `data encode`",
    "convert": "published weights to a model, or a model to other layouts, with a certificate",
    "export": "a model for programs without this library: ONNX or torch.export",
    "quantize": "give a model fewer bits a weight, and measure what that changes",
    "report": "explain the gap between two measurements: `report compare`",
    "bench": "compare the networks on the same images: `bench networks`",
    "explain": "robust labels and faithful maps: `explain demo`, `certify`, `map`, `evaluate`, ...",
    "info": "say what a checkpoint, a run or a preset is",
    "hub": "pass models on: `hub export`, `hub push`, `hub pull`",
}
"""Each verb is the module `diffit.commands.VERB`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 for a mistake of the user, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may hold bytes that are no text, and terminals may lack letters.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note  # type: ignore[assignment]
            _dispatch(args)
    except DiffitError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("diffit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.strerror is None:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        return _refuse(f"{where}{error.strerror}; mend that and repeat the command")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _refuse("there is not enough memory; ask for fewer or smaller images at once")
    return 0


def _refuse(sentence: str) -> int:
    """Print a mistake in one line, whatever is in the names that it quotes."""
    sentence = sentence.removeprefix("diffit ").replace("\n", "\\n").replace("\r", "\\r")
    print(f"diffit: {sentence}", file=sys.stderr)
    return 2


def _out_of_memory(error: Exception) -> bool:
    # By name and text: torch has no class for CPUs, and need not be loaded to ask for that of GPUs.
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _note(message: Warning | str, *_: object) -> None:
    """A warning for a user: what it says, not the line of code that says it."""
    print(f"diffit: note: {message}", file=sys.stderr)


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if args[0] in ("-V", "--version"):
        print(f"diffit {__version__}")
        return
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        raise UsageError(f"there is no command {verb!r}; {nearest(verb, list(VERBS))}")
    module = importlib.import_module(f"diffit.commands.{verb}")
    prog = f"diffit {verb}"
    if hasattr(module, "VERBS"):
        prog, module_args, run, rest = _sub_verb(module.VERBS, prog, rest)
        run(read_arguments(module_args, rest, prog=prog))
    elif hasattr(module, "read"):
        module.run(module.read(rest, prog=prog))
    else:
        module.run(read_arguments(module.Args, rest, prog=prog))


def _sub_verb(
    verbs: dict[str, tuple[type[Settings], Callable[[Any], None]]], prog: str, rest: list[str]
) -> tuple[str, type[Settings], Callable[[Any], None], list[str]]:
    if rest and rest[0] in verbs:
        kind, run = verbs[rest[0]]
        return f"{prog} {rest[0]}", kind, run, rest[1:]
    if rest and rest[0] in ("-h", "--help"):
        width = max(map(len, verbs))
        lines = [f"  {name:{width}}  {_first_line(kind)}" for name, (kind, _) in verbs.items()]
        print(f"usage: {prog} VERB ...\n\n" + "\n".join(lines))
        raise SystemExit(0)
    given = rest[0] if rest else ""
    if not given:
        raise UsageError(f"{prog} needs one of: {', '.join(verbs)}")
    raise UsageError(f"there is no command {prog} {given!r}; {nearest(given, list(verbs))}")


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    return (
        f"diffit {__version__}: diffusion vision transformers\n\n"
        f"usage: diffit VERB ...\n\n{verbs}\n\n"
        "`diffit VERB --help` explains a verb. No idea where to start? `diffit demo`."
    )


def _first_line(kind: type[Settings]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]
