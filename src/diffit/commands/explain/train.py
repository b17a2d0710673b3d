"""`diffit explain train-classifier`: a ViT of the library's own that shows its attention."""

import sys
from pathlib import Path

from diffit.config import Settings
from diffit.data import DataConfig
from diffit.distributed import pick_device
from diffit.training.classifier import Trained, train_classifier
from diffit.training.classifier_settings import ClassifierNetwork, ClassifierRun, ClassifierTrain
from diffit.training.console import duration


class TrainClassifier(Settings):
    """Train a small vision transformer to classify images; the defaults suit the digits.

    Interrupted? The same command continues.
    """

    data: DataConfig = ClassifierRun().data
    held_out: str = ""
    """Images that measure the accuracy: a folder, zip or npz. By default the held-out part of a
    built-in set; of others every tenth image, which is then not trained on."""
    network: ClassifierNetwork = ClassifierNetwork()
    train: ClassifierTrain = ClassifierTrain()
    out: Path
    """Folder for the run; the classifier is then named by it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    quiet: bool = False
    """Show nothing while training."""


def run_train_classifier(args: TrainClassifier) -> None:
    """Train; exit code 130 if interrupted."""
    run = ClassifierRun(
        data=args.data, held_out=args.held_out, network=args.network, train=args.train
    )
    found = train_classifier(run, args.out, device=pick_device(args.device), quiet=args.quiet)
    if found.reason == "interrupted":
        print(
            f"diffit: stopped at {found.images:,} images; repeat the command to continue",
            file=sys.stderr,
        )
        raise SystemExit(130)
    if not args.quiet:
        print(_farewell(found, args.out))


def _farewell(found: Trained, out: Path) -> str:
    return (
        f"{out}: {found.images:,} images in {duration(found.seconds)}; right on "
        f"{found.train_accuracy:.1%} of the images learnt from and {found.accuracy:.1%} of those "
        f"held out\n  classifier  {found.folder}\n  curve       {out / 'curve.png'}"
    )
