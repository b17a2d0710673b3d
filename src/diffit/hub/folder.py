"""Hub-style folders: everything needed to draw images, to know what they may be used for, and to
find out whether the files are intact.

    config.json        network, formulation, codec, class names, sampling; the card; size and
                       sha256 of every file of weights
    model.safetensors  the weights; large ones in `model-00001-of-00003.safetensors` and so on, with
                       `model.safetensors.index.json`, which says where each tensor is
    README.md          the model card, written from config.json

People may edit the words of `config.json` and `README.md`; weights that do not match are refused.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from pydantic import NonNegativeInt
from safetensors import SafetensorError
from torch import Tensor

from diffit import __version__
from diffit.config import Settings, parse
from diffit.errors import CheckpointError, ConfigError
from diffit.fetch import file_sha256
from diffit.hub.card import Card, render
from diffit.model import Model, ModelConfig, check_shapes, empty_model, fill
from diffit.sampling import SamplingConfig
from diffit.sealed import DamagedError, TensorFile, appearing, write_tensors

FORMAT = 1
"""Goes up when an older version of the library could misread a folder."""

CONFIG, CARD, INDEX = "config.json", "README.md", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
MAX_CONFIG_BYTES = 16 << 20


class FileNote(Settings):
    """What a file is, byte for byte."""

    bytes: NonNegativeInt
    sha256: str


class HubConfig(Settings):
    """The content of `config.json`."""

    library: Literal["diffit"] = "diffit"
    format: int = FORMAT
    diffit: str = __version__
    """The version that wrote it."""
    model: ModelConfig
    sampling: SamplingConfig = SamplingConfig()
    """How images are best drawn."""
    card: Card = Card()
    files: dict[str, FileNote]
    """Every file of weights."""


def write_folder(
    folder: Path,
    *,
    config: ModelConfig,
    sampling: SamplingConfig,
    tensors: Mapping[str, Tensor],
    card: Card,
    name: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> HubConfig:
    """Write a hub-style folder whole or not at all.

    Args:
        folder: where it will be; an older hub-style folder there is replaced.
        config: what the model is.
        sampling: how images are best drawn.
        tensors: the network's weights, in the precision in which they shall be stored.
        card: what else is said of the model.
        name: what the card calls the model in commands, such as `owner/name`; by default the
            folder.
        shard_bytes: weights are split into files of up to this size.

    Returns:
        The content of its `config.json`.

    Raises:
        CheckpointError: ``folder`` is something else, the tensors are not those of ``config``, or
            the disk is full.
    """
    if folder.exists() and not is_hub_folder(folder):
        raise CheckpointError(f"{folder} exists and is no hub-style folder; name a new one")
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    check_shapes(empty_model(config), shapes, source="the table of tensors")
    with appearing(folder) as part:
        _write_weights(part, tensors, shard_bytes)
        files = {path.name: _note(path) for path in sorted(part.iterdir())}
        content = HubConfig(model=config, sampling=sampling, card=card, files=files)
        text = render(card, config, sampling, name=name or folder.name)
        (part / CONFIG).write_text(_json(content.model_dump(mode="json")), encoding="utf-8")
        (part / CARD).write_text(text, encoding="utf-8")
    return content


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder says that it is hub-style and of this library."""
    try:
        return _read_json(folder / CONFIG).get("library") == "diffit"
    except CheckpointError:
        return False


def read_folder(folder: Path) -> HubConfig:
    """What `config.json` says; CheckpointError if it is none of ours, damaged or too new."""
    data = _read_json(folder / CONFIG)
    if data.get("library") != "diffit":
        raise CheckpointError(f"{folder / CONFIG} describes no model of diffit")
    if data.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {data.get('format')!r}, but this version of diffit reads format "
            f"{FORMAT}; use the version that wrote it ({data.get('diffit')})"
        )
    try:
        content = parse(HubConfig, data, source=str(folder / CONFIG))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    for name in content.files:
        if Path(name).name != name or not name.endswith((".safetensors", INDEX)):
            raise CheckpointError(f"{folder / CONFIG} lists {name!r}, which is no file of weights")
    return content


def verify_folder(folder: Path, content: HubConfig) -> None:
    """CheckpointError unless all weights are as they were written."""
    for name, note in content.files.items():
        if not (folder / name).is_file():
            raise DamagedError(f"{folder} is damaged: {name} is missing; fetch the rest too")
        size = (folder / name).stat().st_size
        if size != note.bytes:
            raise DamagedError(
                f"{folder} is damaged: {name} has {size} bytes instead of {note.bytes}; "
                "remove it and fetch it again"
            )
        if file_sha256(folder / name) != note.sha256:
            raise DamagedError(
                f"{folder} is damaged: the checksum of {name} does not match; remove it and "
                "fetch it again"
            )


def load_folder(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    matrices: torch.dtype | None = None,
) -> Model:
    """The model in a hub-style folder, its weights verified, read one tensor after the other.

    Warns if the licence restricts what one may do with it.
    """
    content = read_folder(folder)
    verify_folder(folder, content)
    if restriction := content.card.restriction:
        warnings.warn(f"these weights are {restriction} ({content.card.licence})", stacklevel=3)
    model = empty_model(content.model)
    shards = [folder / name for name in content.files if name.endswith(".safetensors")]
    check_shapes(model, _shapes(shards, folder), source=str(folder))
    for shard in shards:
        fill(model, TensorFile(shard).items(), device=device, dtype=dtype, matrices=matrices)
    model.sampling = content.sampling
    model.provenance = {
        **content.card.provenance,
        "checkpoint": str(folder),
        "weights": "model",
        "blake2b": None,
        "licence": content.card.licence,
    }
    return model


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    for name, keys in split.filename_to_tensors.items():
        write_tensors(folder / name, {key: tensors[key] for key in keys})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(_json(index), encoding="utf-8")


def _shapes(shards: list[Path], folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        try:
            found = TensorFile(shard).shapes
        except SafetensorError as error:
            raise DamagedError(f"{folder} is damaged: {shard.name}: {error}") from None
        if twice := found.keys() & shapes.keys():
            raise DamagedError(f"{folder} is damaged: tensor {min(twice)!r} is in two files")
        shapes |= found
    return shapes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} is larger than 16 MiB; this is no configuration")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; name a hub-style folder") from None
    except (OSError, ValueError, RecursionError):
        raise DamagedError(f"{path} is damaged: it cannot be read as JSON") from None
    if not isinstance(data, dict):
        raise DamagedError(f"{path} is damaged: it holds no JSON object")
    return data


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _note(path: Path) -> FileNote:
    return FileNote(bytes=path.stat().st_size, sha256=file_sha256(path))
