"""`diffit train CONFIG --out RUN`, and `diffit train --resume RUN`."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import NonNegativeInt, PositiveInt

from diffit.arguments import read_arguments
from diffit.checkpoint import checkpoints
from diffit.commands.train_estimate import DryRunArgs, estimate
from diffit.commands.train_replay import ReplayArgs, show_replay
from diffit.config import Settings, parse
from diffit.data import DataConfig
from diffit.data.pairs import TaskConfig
from diffit.distributed import agreed, is_first, join, pick_device, restarted
from diffit.errors import UsageError
from diffit.generation import SamplingConfig
from diffit.launch import launch, launched
from diffit.model import ModelConfig
from diffit.sealed import DamagedError, verify
from diffit.training.console import duration
from diffit.training.folder import CONFIG, has_begun, read_run, refuse_no_run
from diffit.training.loop import Outcome, train
from diffit.training.pictures import draw_pictures
from diffit.training.presets import presets, read_config
from diffit.training.settings import RunConfig, TrainConfig, changeable, changes

USAGE = """usage: diffit train CONFIG --out RUN [--SETTING VALUE ...]
       diffit train --resume RUN [--train.images N ...]
       diffit train --replay RUN/spikes/STEP
       diffit train CONFIG --dry-run [--processes N] [--SETTING VALUE ...]

Train a model. CONFIG is a YAML file or one of the presets:

{presets}

Every setting can be replaced, such as --train.lr 2e-4 or --data.path my-images;
`diffit train CONFIG --help` lists them with the values of CONFIG. --model.linear ternary makes the
linear layers ternary. Ctrl-C ends a run with a checkpoint after the step it is in; --resume
continues it as if it had never stopped. --processes N trains with N processes on this machine;
torchrun and srun can start them too, on many. --dry-run says what a run would take and trains
nothing."""

OR_RESUME = "--or-resume"
DRY_RUN = "--dry-run"
LINEAR = "--model.linear"
"""Chooses a kind of linear layers, and with it which settings `model.linear` has."""


class Args(Settings):
    """Train a model from a configuration file or a preset, in a new folder."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    sampling: SamplingConfig
    task: TaskConfig
    out: Path
    """New folder for the run: checkpoints, metrics, pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    quiet: bool = False
    """Show nothing while training."""
    or_resume: bool = False
    """If --out is a run already, continue it: for jobs that a cluster starts again."""
    processes: PositiveInt = 1
    """Processes on this machine that share every batch; on GPUs one for each."""
    max_restarts: NonNegativeInt = 0
    """How often they are started again, from the newest checkpoint, when one of them fails."""


class ResumeArgs(Settings):
    """Continue a run from its newest intact checkpoint, as if it had never stopped.

    Its length may change (--train.images, --train.minutes), and what no weight depends on.
    """

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    sampling: SamplingConfig
    task: TaskConfig
    resume: Path
    """Folder of the run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    quiet: bool = False
    """Show nothing while training."""
    processes: PositiveInt = 1
    """Processes on this machine that share every batch; on GPUs one for each."""
    max_restarts: NonNegativeInt = 0
    """How often they are started again, from the newest checkpoint, when one of them fails."""


A = TypeVar("A", Args, ResumeArgs, DryRunArgs)
AnyArgs = Args | ResumeArgs | DryRunArgs | ReplayArgs


def read(argv: Sequence[str], *, prog: str) -> AnyArgs:
    """The arguments, the same in all processes of a run, or one refusal for all."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0)
    join()
    with agreed():
        return _read_all(_again(argv), prog=prog)


def _again(argv: Sequence[str]) -> Sequence[str]:
    """The arguments, with --resume RUN in the place of CONFIG --out RUN if the run exists and may
    be continued: it was asked for, or a launcher has started the same command again."""
    out = _value_of("--out", argv)
    wanted = OR_RESUME in argv or restarted()
    if out is None or not wanted or not has_begun(Path(out)):
        return argv
    rest = _without("--out", argv[1:])
    for option in (LINEAR, "--train.init-from"):
        rest = _without(option, rest) if _value_of(option, rest) is not None else rest
    return ["--resume", out, *(word for word in rest if word != OR_RESUME)]


def _read_all(argv: Sequence[str], *, prog: str) -> AnyArgs:
    """First the configuration, since it decides which settings there are."""
    if any(word.partition("=")[0] == "--replay" for word in argv):
        return read_arguments(ReplayArgs, argv, prog=prog)
    run = _value_of("--resume", argv)
    if run is not None:
        if _value_of("--out", argv) is not None:
            raise UsageError(f"{prog}: --resume goes on in {run}; leave --out out")
        refuse_no_run(Path(run))
        settings = read_run(Path(run))
        config = parse(RunConfig, settings, source=str(Path(run) / CONFIG))
        return _read(ResumeArgs, argv, config, prog=prog, resume=tyro.MISSING)
    if "--resume" in argv:
        raise UsageError(f"{prog}: --resume needs the folder of a run")
    if not argv or argv[0].startswith("-"):
        raise UsageError(
            f"{prog} needs a configuration file or a preset as its first argument; presets are "
            + ", ".join(presets())
        )
    name, *rest = argv
    config, prog = read_config(name), f"{prog} {name}"
    if (linear := _value_of(LINEAR, rest)) is not None:
        config, rest = _with_linear(config, linear, prog), _without(LINEAR, rest)
    if DRY_RUN in rest:
        return _read(DryRunArgs, rest, config, prog=prog)
    return _read(Args, rest, config, prog=prog, out=tyro.MISSING)


def usage() -> str:
    """What `diffit train --help` prints."""
    known = presets()
    width = max(map(len, known), default=0)
    return USAGE.format(presets="\n".join(f"  {name:{width}}  {known[name]}" for name in known))


def run(args: AnyArgs) -> None:
    """Train, or say what that would take; exit code 130 if interrupted."""
    if isinstance(args, ReplayArgs):
        show_replay(args)
        return
    if isinstance(args, DryRunArgs):
        estimate(args)
        return
    config = _config(args)
    folder = args.out if isinstance(args, Args) else args.resume
    with agreed():
        device = pick_device(args.device)
        if isinstance(args, ResumeArgs):
            _refuse_changes(config, folder)
    again = f"continue with: diffit train --resume {folder}"
    if args.processes > 1 and not launched():
        code = launch(
            sys.argv[1:], processes=args.processes, max_restarts=args.max_restarts, again=again
        )
        raise SystemExit(code)
    outcome = train(
        config,
        folder,
        resume=isinstance(args, ResumeArgs),
        device=device,
        on_snapshot=draw_pictures,
        quiet=args.quiet,
    )
    if outcome.reason in ("interrupted", "terminated"):
        if is_first():
            print(f"diffit: stopped at {outcome.images:,} images; {again}", file=sys.stderr)
        # Who sends SIGTERM wants the place, and takes the run for well kept.
        raise SystemExit(130 if outcome.reason == "interrupted" else 0)
    if is_first() and not args.quiet:
        print(_farewell(outcome, folder, task=config.task.given))


def _farewell(outcome: Outcome, folder: Path, *, task: bool) -> str:
    more = "--train.minutes" if outcome.reason == "time" else "--train.images"
    use = f"draw images:  diffit sample {folder} --out samples"
    if task:
        use = f"restore:      diffit restore IMAGE --model {folder} --out restored"
    return (
        f"{folder}: {outcome.images:,} images in {duration(outcome.seconds)}\n"
        f"{use}\n"
        f"go on:        diffit train --resume {folder} {more} N"
    )


def _read(kind: type[A], argv: Sequence[str], config: RunConfig, *, prog: str, **missing: Any) -> A:
    """The rest of the arguments, every setting starting from ``config``."""
    settings = {name: getattr(config, name) for name in RunConfig.model_fields}
    # Not validated: what only the command line can say is still missing.
    default = kind.model_construct(**settings, **missing)
    return read_arguments(kind, argv, prog=prog, default=default)


def _config(args: Args | ResumeArgs) -> RunConfig:
    return RunConfig(**{name: getattr(args, name) for name in RunConfig.model_fields})


def _refuse_changes(config: RunConfig, run: Path) -> None:
    before = _settings_before(run)
    fixed = [name for name in changes(before, config) if not changeable(name)]
    if fixed:
        raise UsageError(
            f"{', '.join(fixed)} cannot change when a run is resumed, since its weights depend on "
            f"it; start another run with --train.init-from {run}"
        )


def _settings_before(run: Path) -> RunConfig:
    """What the newest checkpoint was trained with; the file in the run may have been edited."""
    for folder in reversed(checkpoints(run)):
        with contextlib.suppress(DamagedError):
            verify(folder, CONFIG)
            return parse(RunConfig, read_run(folder), source=str(folder / CONFIG))
    return parse(RunConfig, read_run(run), source=str(run / CONFIG))


def _with_linear(config: RunConfig, kind: str, prog: str) -> RunConfig:
    settings = config.model_dump()
    settings["model"]["linear"] = kind
    return parse(RunConfig, settings, source=prog.removeprefix("diffit "))


def _without(option: str, argv: Sequence[str]) -> list[str]:
    """The arguments without an option and its value."""
    words = list(argv)
    place = next(i for i, word in enumerate(words) if word.partition("=")[0] == option)
    del words[place : place + (1 if "=" in words[place] else 2)]
    return words


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    for place, word in enumerate(argv):
        if word == option and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
