"""`diffit explain demo`: a classifier, a denoiser, an attack, a certificate, in one command."""

import sys
from pathlib import Path

from diffit.commands.explain.arguments import Parts
from diffit.commands.explain.evaluate import Evaluate, run_evaluate
from diffit.config import Settings, parse
from diffit.errors import UsageError
from diffit.explain.classifier_folder import is_classifier
from diffit.explain.opening import RESULT
from diffit.training.classifier import train_classifier
from diffit.training.classifier_settings import ClassifierRun, ClassifierTrain
from diffit.training.folder import is_run, read_run
from diffit.training.loop import train
from diffit.training.presets import read_config
from diffit.training.settings import RunConfig

PRESET, DATA = "digits-denoiser", "builtin:digits-test"
RECIPE = {"batch": 64, "lr": 2e-3, "noise": 0.0}
"""Of the classifier whose figures the documentation has. It sees no noise, as one off the shelf:
that is whom a denoiser helps."""


class Demo(Settings):
    """Train a classifier and a denoiser of digits, attack, certify, explain: one report.

    The images ship with the package; nothing is fetched. Interrupted? The same command continues.
    """

    out: Path = Path("explain-demo")
    """Folder for everything."""
    short: bool = False
    """Train for seconds and look at a few images only, to see that everything works."""


def run_demo(args: Demo) -> None:
    """Train both, then evaluate; each part is left out if it is there already."""
    refuse_taken(args.out)
    classifier, denoiser = args.out / "classifier", args.out / "denoiser"
    try:
        print(f"1/3  training a classifier, {classifier}", flush=True)
        _train_classifier(classifier, short=args.short)
        print(f"2/3  training a denoiser, {denoiser}", flush=True)
        _train_denoiser(denoiser, short=args.short)
    except KeyboardInterrupt:
        print("diffit: nothing is lost; repeat the command to continue", file=sys.stderr)
        raise
    print(f"3/3  evaluating on {DATA}, {args.out / 'evaluation'}", flush=True)
    run_evaluate(evaluation(args.out, short=args.short))
    if args.short:
        print("this was the short setting: do not judge the quality")


def refuse_taken(out: Path) -> None:
    """UsageError if ``out`` is something else than a free name or an earlier demo."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "classifier").is_dir():
        raise UsageError(f"--out {out} holds other files; name a new folder")


def evaluation(out: Path, *, short: bool) -> Evaluate:
    """What the demo evaluates."""
    parts = Parts(
        classifier=str(out / "classifier"), denoiser=str(out / "denoiser"), device="cpu", unit=250
    )
    given = {"data": DATA, "parts": parts, "out": out / "evaluation", "units": "01", "limit": 100}
    few = {
        "limit": 5, "sigmas": (0.25,), "eps": ("16/255",), "n0": 20, "n": 50, "samples": 8,
        "radius_samples": 16, "adaptive": 2, "attack_steps": 2, "methods": ("raw-attention",),
    }  # fmt: skip
    return Evaluate.model_validate(given | (few if short else {}))


def _train_classifier(folder: Path, *, short: bool) -> None:
    if is_classifier(folder / RESULT):
        return
    few = {"images": 1_000, "warmup": 200} if short else {}
    run = ClassifierRun(train=ClassifierTrain.model_validate({**RECIPE, **few}))
    if train_classifier(run, folder).reason == "interrupted":
        raise KeyboardInterrupt


def _train_denoiser(folder: Path, *, short: bool) -> None:
    resume = is_run(folder)
    if resume:
        config = parse(RunConfig, read_run(folder), source=str(folder))
    else:
        config = read_config(PRESET)
        if short:
            few = {"images": 1_000, "warmup": 200, "log_every": 1_000}
            config = config.model_copy(update={"train": config.train.model_copy(update=few)})
    if train(config, folder, resume=resume).reason == "interrupted":
        raise KeyboardInterrupt
