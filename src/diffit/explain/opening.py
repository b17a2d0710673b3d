"""From what a user names to a classifier: our own folders, transformers, ResNets for CIFAR.

Nothing is guessed from names, nothing runs code from a file.
"""

from pathlib import Path

from diffit.errors import CheckpointError, UsageError
from diffit.explain.classifier import Classifier
from diffit.explain.classifier_folder import load_classifier
from diffit.explain.resnet import open_cifar_resnet
from diffit.explain.transformers_folder import fetch_transformers, is_transformers
from diffit.explain.transformers_vit import open_transformers
from diffit.fetch import parse_id
from diffit.sealed import STATE

RESULT, SETTINGS = "classifier", "training.yaml"
"""What `diffit explain train-classifier` calls its result and its settings, in the run's folder."""
KINDS = (
    "a folder of `diffit explain train-classifier`, a folder or hub id of an image classifier of "
    "transformers, or a .th file of a ResNet for CIFAR"
)


def open_classifier(path: str | Path) -> Classifier:
    """A classifier, frozen, in evaluation mode, on the CPU.

    Args:
        path: a folder that `diffit explain train-classifier` or `save_classifier` wrote; a folder
            of transformers, or a hub id `owner/repo` or `owner/repo@revision` of such; or a `.th`
            file of a ResNet for CIFAR. What exists on this machine wins over the hub.

    Raises:
        CheckpointError: nothing is there, it is damaged, or it is no classifier.
        UsageError: it needs a library that is not installed, or is named otherwise.
    """
    source = parse_id(path)
    if source is not None:
        if source.file:
            raise UsageError(
                f"{source} names a file; name the repository alone, {source.repo}: its "
                "configuration is needed too"
            )
        return open_transformers(fetch_transformers(source), name=str(source))
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            return _open_folder(place)
        exists = place.is_file()
    except (OSError, ValueError):  # a name that no file can have
        exists = False
    if not exists:
        raise CheckpointError(f"there is nothing at {str(path)!r}; name {KINDS}")
    if place.suffix != ".th":
        raise CheckpointError(f"{path} is a file that holds no classifier; name {KINDS}")
    return open_cifar_resnet(place)


def _open_folder(place: Path) -> Classifier:
    for folder in (place / RESULT, place):
        if (folder / STATE).is_file():
            return load_classifier(folder)
    if (place / SETTINGS).is_file():
        raise CheckpointError(
            f"{place} is a training that has not ended; repeat the command that began it"
        )
    if is_transformers(place):
        return open_transformers(place)
    raise CheckpointError(f"{place} holds no classifier; name {KINDS}")
