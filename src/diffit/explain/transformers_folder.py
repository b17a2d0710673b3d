"""Image classifiers in the layout of transformers: `config.json`, `preprocessor_config.json` and
`model.safetensors`, in a folder or a repository of the hub. Nothing else is read, and no pickle.
"""

from pathlib import Path
from typing import Any, NamedTuple

from diffit.errors import CheckpointError, UsageError
from diffit.fetch import HubId, first_of, read_json

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
MAX_SIDE = 4096


class Facts(NamedTuple):
    """What the two configurations of a classifier say."""

    config: dict[str, Any]
    """The content of `config.json`."""
    size: tuple[int, int]
    """(height, width) that images are brought to."""
    mean: tuple[float, ...]
    """That images in [0, 1] are normalised by, as is the standard deviation."""
    std: tuple[float, ...]
    name: str
    """What messages call it."""

    @property
    def kind(self) -> str:
        """transformers' name of the architecture, such as vit, deit, dinov2, swin."""
        return str(self.config.get("model_type"))

    def class_names(self, classes: int) -> tuple[str, ...]:
        """The names of K classes; 0, 1, 2, ... if the configuration names others."""
        table = self.config.get("id2label")
        if isinstance(table, dict) and table.keys() == {str(i) for i in range(classes)}:
            return tuple(str(table[str(i)]) for i in range(classes))
        return tuple(str(i) for i in range(classes))


def is_transformers(folder: Path) -> bool:
    """Whether a folder says that it holds a model of transformers."""
    try:
        return "model_type" in read_json(folder / CONFIG)
    except CheckpointError:
        return False


def fetch_transformers(source: HubId) -> Path:
    """The folder of a repository's three files, in a cache of this machine.

    CheckpointError names what the repository lacks, or why it cannot be asked.
    """
    folders = []
    for name in (CONFIG, PREPROCESSOR, WEIGHTS):
        found = first_of(source, [name], way_out="name a folder that holds it")
        if found is None:
            raise CheckpointError(
                f"{source} has no {name}: it is no image classifier of transformers whose weights "
                "are safetensors"
            )
        folders.append(found.parent)
    if len({*folders}) > 1:
        raise CheckpointError(
            f"the files of {source} lie in several folders ({folders[0]}, {folders[-1]}); put "
            "them into one, and name it"
        )
    return folders[0]


def read_facts(folder: Path, *, name: str = "") -> Facts:
    """What the configurations in a folder say; CheckpointError if one is missing or unusual."""
    config = read_json(folder / CONFIG)
    if "model_type" not in config:
        raise CheckpointError(f"{folder / CONFIG} describes no model of transformers")
    if not (folder / PREPROCESSOR).is_file():
        raise CheckpointError(
            f"{folder} has no {PREPROCESSOR}, which says how images are normalised; fetch it from "
            "where the model came from"
        )
    told = read_json(folder / PREPROCESSOR)
    mean, std = _normalisation(told, folder)
    return Facts(config, _size(told, config, folder), mean, std, name or str(folder))


def _normalisation(
    told: dict[str, Any], folder: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    factor = told.get("rescale_factor", 1 / 255)
    if told.get("do_rescale") is False or not _near(factor, 1 / 255):
        raise CheckpointError(
            f"{folder / PREPROCESSOR} does not bring images to [0, 1]; such models are not read"
        )
    if told.get("do_normalize") is False:
        return (0.0,), (1.0,)
    mean, std = (_numbers(told.get(key)) for key in ("image_mean", "image_std"))
    if not mean or not std or min(std) <= 0:
        raise CheckpointError(
            f"{folder / PREPROCESSOR} has no image_mean with an image_std above 0; fetch it again"
        )
    return mean, std


def _size(told: dict[str, Any], config: dict[str, Any], folder: Path) -> tuple[int, int]:
    """The crop, if there is one, else the size that images are resized to."""
    crop = told.get("crop_size") if told.get("do_center_crop") else None
    size = crop or told.get("size") or config.get("image_size")
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    sides = [side for side in (height, width) if type(side) is int and 0 < side <= MAX_SIDE]
    if len(sides) != 2:
        raise CheckpointError(f"{folder / PREPROCESSOR} gives no size of images that can be used")
    return sides[0], sides[1]


def _numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers; () if it is none."""
    values = value if isinstance(value, list) else [value]
    return tuple(float(v) for v in values) if all(type(v) in (int, float) for v in values) else ()


def _near(value: Any, wanted: float) -> bool:
    return type(value) in (int, float) and abs(value / wanted - 1) < 1e-3


def need_transformers() -> Any:
    """The library; UsageError with the way to install it if it is missing."""
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "this classifier needs transformers: pip install 'diffit-torch[classifiers]'"
        ) from None
    return transformers
