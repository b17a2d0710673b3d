"""`diffit demo`: train, sample, evaluate, and a report of it all, in about five minutes."""

import shutil
import sys
import time
from pathlib import Path

from pydantic import Field

from diffit.checkpoint import load
from diffit.commands import evaluate, sample
from diffit.commands.demo_report import FEATURES, PRESET, REAL, SHOWN, write_report
from diffit.config import Settings, parse
from diffit.errors import UsageError
from diffit.evaluation.passport import Passport, read_passport
from diffit.model import Model
from diffit.samples import available_cores, read_plan, weights_of
from diffit.training.console import duration
from diffit.training.folder import is_run, read_run
from diffit.training.loop import train
from diffit.training.pictures import draw_pictures
from diffit.training.presets import read_config
from diffit.training.settings import RunConfig

SHORT_MINUTES, SHORT_COUNT = 0.4, 200


class Args(Settings):
    """Train a DiffiT on real images before your eyes, sample, evaluate, write a report.

    The images are 8 x 8 handwritten digits that ship with the package; nothing is fetched.
    Interrupted? The same command continues.
    """

    out: Path = Path("demo-run")
    """Folder for everything."""
    minutes: float = Field(default=3.0, gt=0)
    """Time in training."""
    count: int = Field(default=1000, ge=SHOWN)
    """How many digits to draw and measure."""
    short: bool = False
    """Train for seconds only, to see that everything works: quality is not to be expected."""


def run(args: Args) -> None:
    """Train, sample, evaluate, report; each part is left out if it is there already."""
    started = time.monotonic()
    minutes = SHORT_MINUTES if args.short else args.minutes
    digits = SHORT_COUNT if args.short else args.count
    refuse_taken(args.out)
    try:
        print(f"1/4  training {PRESET} on {REAL} for {duration(60 * minutes)}", flush=True)
        model = trained(args.out / "run", minutes)
        print(f"2/4  drawing {digits} digits", flush=True)
        drawn(args.out, model, digits)
        print(f"3/4  comparing them with the real ones ({FEATURES})", flush=True)
        passport = measured(args.out)
        print("4/4  writing the report", flush=True)
        report = args.out / "report.html"
        report.write_text(write_report(args.out, model, passport, short=args.short), "utf-8")
    except KeyboardInterrupt:
        print("diffit: nothing is lost; repeat the command to continue", file=sys.stderr)
        raise
    for line in farewell(args.out, passport, time.monotonic() - started, short=args.short):
        print(line)


def refuse_taken(out: Path) -> None:
    """UsageError if ``out`` is something else than a free name or an earlier demo."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "run").is_dir():
        raise UsageError(f"--out {out} holds other files; name a new folder")


def trained(folder: Path, minutes: float) -> Model:
    """The trained model, from a new run or from the end of an earlier one."""
    resume = is_run(folder)
    if resume:
        config = parse(RunConfig, read_run(folder), source=str(folder))
    else:
        config = read_config(PRESET)
    # One thread: so small a network gains nothing from a second, and loses to a busy neighbour.
    limits = {"minutes": minutes, "threads": 1, "log_every": 2_000}
    config = config.model_copy(update={"train": config.train.model_copy(update=limits)})
    outcome = train(config, folder, resume=resume, on_snapshot=draw_pictures)
    if outcome.reason == "interrupted":
        raise KeyboardInterrupt
    return load(folder)


def drawn(out: Path, model: Model, digits: int) -> None:
    """Draw the digits; those of a run that has been trained further since are drawn anew."""
    plan = read_plan(out / "samples")
    if plan is not None and (plan.weights != weights_of(model) or plan.count > digits):
        shutil.rmtree(out / "samples")
        (out / "evaluation.json").unlink(missing_ok=True)
    sample.run(
        sample.Args(
            checkpoint=out / "run",
            out=out / "samples",
            count=digits,
            device="cpu",
            processes=min(2, available_cores()),
            threads=1,
            trajectory=True,
            sampling=model.sampling,
        )
    )


def measured(out: Path) -> Passport:
    """The passport of the drawn digits."""
    path, plan = out / "evaluation.json", read_plan(out / "samples")
    if path.exists():
        passport = read_passport(path)
        if plan is not None and passport.samples.count == plan.count:
            return passport
        path.unlink()
    evaluate.run(
        evaluate.Args(
            samples=str(out / "samples"), reference=REAL, features=FEATURES, device="cpu", out=path
        )
    )
    return read_passport(path)


def farewell(out: Path, passport: Passport, seconds: float, *, short: bool) -> list[str]:
    """Where everything is."""
    snapshots = sorted((out / "run" / "snapshots").glob("*/beside.png"))
    files = {
        "report": out / "report.html",
        "drawn digits": out / "samples" / "grid.png",
        "real and drawn": snapshots[-1] if snapshots else None,
        "denoising path": out / "samples" / "trajectory.png",
        "learning curve": out / "run" / "loss.png",
        "figures": out / "evaluation.json",
    }
    lines = [f"  {name:15} {path}" for name, path in files.items() if path and path.exists()]
    quality = "the short setting: do not judge the quality" if short else _accuracy(passport)
    return ["", f"done in {duration(seconds)}; {quality}", *lines]


def _accuracy(passport: Passport) -> str:
    share = 100 * passport.value("accuracy")
    return f"{share:.1f} % of the drawn digits are recognised as what they should be"
