"""Checkpoints: what a run has, which one is the newest intact, and how one becomes a model."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffit import sealed
from diffit.averages import blend
from diffit.codecs.autoencoder import AutoencoderConfig, exchange
from diffit.config import Settings, parse, read_yaml, to_yaml
from diffit.errors import CheckpointError, ConfigError
from diffit.generation import SamplingConfig
from diffit.hub import find, is_hub_folder, load_folder, read_folder
from diffit.model import Model, ModelConfig, check_shapes, empty_model, fill
from diffit.sealed import CONFIG, STATE, DamagedError, read_state, read_tensors

if TYPE_CHECKING:
    from diffit.convert import Converted

POWER = "ema-power-"
"""Begins the names of power-function averages; the relative length follows."""


def load(
    path: str | Path,
    *,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    matrices: torch.dtype | None = None,
    codec: str | Path | None = None,
) -> Model:
    """Read a model from a checkpoint.

    Args:
        path: a checkpoint, a hub-style folder, a run, whose newest intact checkpoint is taken,
            a file of published weights, a folder of diffusers, or a hub id: `owner/repo`,
            `owner/repo@revision`, `owner/repo:file.safetensors`. What exists on this machine wins.
        weights: name of the set of weights, such as `model` or `ema-0.9999`; by default the one
            that the checkpoint recommends. A run that kept two power-function averages has
            `ema-power-LENGTH` for any length.
        device: where the model is put.
        dtype: precision of the network; float32 by default.
        matrices: precision of the large matrices alone, see `diffit.model.matrices_of`.
        codec: folder or hub id of an autoencoder to use in place of the model's own: the same one
            in another place, or another one of the same latents.
    """
    path = find(path)
    if is_hub_folder(path):
        if weights not in (None, "model"):
            raise CheckpointError(f"{path} has no weights {weights!r}; there are: model")
        model = load_folder(path, device=device, dtype=dtype, matrices=matrices)
        return _with_codec(model, codec)
    if _is_foreign(path):
        model = _convert(path, weights).model(device=device, dtype=dtype, matrices=matrices)
        model.provenance["checkpoint"] = str(path)
        return _with_codec(model, codec)
    folder, name, tensors = _find(path, weights)
    state = read_state(folder)
    config, sampling = _read_settings(folder)
    model = empty_model(config)
    # Those of files are known without reading them.
    shapes = getattr(tensors, "shapes", None) or {key: t.shape for key, t in tensors.items()}
    check_shapes(model, shapes, source=str(folder))
    fill(model, tensors.items(), device=device, dtype=dtype, matrices=matrices)
    model.sampling = sampling
    model.provenance = {
        "checkpoint": str(folder),
        "weights": name,
        "images": state.get("images"),
        # An average that was rebuilt is none of the sets.
        "blake2b": sealed.fingerprint(folder, name) if name in sealed.sets_in(folder) else None,
    }
    return _with_codec(model, codec)


def _is_foreign(path: Path) -> bool:
    """Whether this is a file of published weights, or a folder of diffusers."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("config.json", "model_index.json"))
    return path.is_file() and path.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def _convert(path: Path, weights: str | None) -> "Converted":
    from diffit.convert import from_file  # of this layer, and for the weights of others alone

    converted = from_file(path, weights=weights, certify=False)
    licence = converted.licence
    if licence.note:
        warnings.warn(f"{path.name}: {licence.name}: {licence.note}", stacklevel=4)
    return converted


def _with_codec(model: Model, path: str | Path | None) -> Model:
    if path is None:
        return model
    before = model.config.codec
    if not isinstance(before, AutoencoderConfig):
        raise CheckpointError(
            f"{model.provenance['checkpoint']} draws pixels, without an autoencoder; leave the "
            "codec out"
        )
    model.set_codec(exchange(before, str(path), channels=model.shape[0]))
    return model


def recommended(path: str | Path) -> SamplingConfig:
    """How the model at ``path`` is best sampled; its weights are not read."""
    path = find(path)
    if is_hub_folder(path):
        return read_folder(path).sampling
    if _is_foreign(path):
        return _convert(path, None).sampling
    for folder in candidates(path):
        try:
            return _read_settings(folder)[1]
        except DamagedError as error:
            damage = error
    raise damage


def save_model(
    folder: Path,
    config: Settings,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        folder: where the checkpoint will be; an old one of that name is replaced.
        config: settings with a field `model`, and optionally `sampling`: those of the whole run.
        tensors: name of each set (`model`, `ema-0.9999`, `optimizer`) -> its tensors.
        state: what else belongs to this moment, such as `images` (seen so far) and `default`
            (the name of the recommended weights).
    """
    sealed.write_sealed(folder, config=to_yaml(config), tensors=tensors, state=state)


def _find(path: Path, weights: str | None) -> tuple[Path, str, Mapping[str, Tensor]]:
    """The checkpoint that ``path`` means, the name of the weights, and their tensors."""
    found = candidates(path)
    if found == [path]:
        return path, *_read_weights(path, weights)
    damage: list[DamagedError] = []
    for folder in found:
        try:
            name, tensors = _read_weights(folder, weights)
        except DamagedError as error:
            damage.append(error)
            continue
        for reason in damage:
            warnings.warn(f"{reason}; passed over", stacklevel=3)
        return folder, name, tensors
    raise CheckpointError(f"no checkpoint of {path} is intact: {damage[0]}")


def candidates(path: Path) -> list[Path]:
    """The checkpoints that ``path`` may mean, the newest first; CheckpointError if none."""
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; name a checkpoint or the folder of a run")
    found = [path] if (path / STATE).exists() else checkpoints(path)[::-1]
    if not found:
        raise CheckpointError(f"{path} is no checkpoint, and no run that has written one")
    return found


def _read_weights(folder: Path, weights: str | None) -> tuple[str, Mapping[str, Tensor]]:
    names = weights_in(folder)
    name = weights or names[0]
    if name in names:
        return name, read_tensors(folder, name)
    length = re.fullmatch(re.escape(POWER) + r"(0\.\d+)", name)
    if length and any(other.startswith(POWER) for other in names):
        return name, rebuild_average(folder, float(length[1]))
    raise CheckpointError(f"{folder} has no weights {name!r}; there are: {', '.join(names)}")


def weights_in(folder: Path) -> list[str]:
    """Names of the sets of weights in a checkpoint, the recommended one first."""
    state = read_state(folder)
    first, files = state.get("default", "model"), sealed.sets_in(folder)
    if set(files) <= {"optimizer"}:
        raise DamagedError(f"{folder} is damaged: its {STATE} lists no weights")
    return sorted((name for name in files if name != "optimizer"), key=lambda n: (n != first, n))


def rebuild_average(folder: Path, length: float) -> dict[str, Tensor]:
    """The power-function average of any relative length at a checkpoint (arXiv:2312.02696, C.2).

    It is blended, best in least squares, from the averages that the run stored up to there.
    """
    stored = [
        (place, name)
        for place in (*_earlier_averages(folder), folder)
        for name in weights_in(place)
        if name.startswith(POWER)
    ]
    profiles = [(_images(place), float(name.removeprefix(POWER))) for place, name in stored]
    try:
        shares = blend(profiles, (_images(folder), length))
    except ValueError as error:
        raise CheckpointError(f"weights {POWER}{length}: {error}") from None
    total: dict[str, Tensor] = {}
    for share, (place, name) in zip(shares, stored, strict=True):
        for key, tensor in read_tensors(place, name).items():
            total[key] = total.get(key, 0) + share * tensor.double()
    return {key: tensor.float() for key, tensor in total.items()}


def _earlier_averages(checkpoint: Path) -> list[Path]:
    found = (checkpoint.parent.parent / "averages").glob("*")
    return sorted(p for p in found if p.name.isdigit() and p.name < checkpoint.name)


def _images(folder: Path) -> int:
    return int(read_state(folder)["images"])


def _read_settings(folder: Path) -> tuple[ModelConfig, SamplingConfig]:
    sealed.verify(folder, CONFIG)
    try:
        settings = read_yaml(folder / CONFIG)
        source = str(folder / CONFIG)
        model = parse(ModelConfig, settings.get("model") or {}, source=source)
        return model, parse(SamplingConfig, settings.get("sampling") or {}, source=source)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


class Newest(NamedTuple):
    """What a run has to offer after an interruption."""

    folder: Path | None
    """The newest intact checkpoint."""
    damaged: dict[Path, str]
    """Newer ones that are not intact, and why."""


def newest(run: Path) -> Newest:
    """The newest intact checkpoint of a run, and the damaged ones that were passed over."""
    damaged: dict[Path, str] = {}
    for folder in reversed(checkpoints(run)):
        try:
            sealed.verify(folder)
        except DamagedError as error:
            damaged[folder] = str(error)
        else:
            return Newest(folder, damaged)
    return Newest(None, damaged)


def checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, the oldest first."""
    found = [p for p in (run / "checkpoints").glob("*") if p.name.isdigit() and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def checkpoint_folder(run: Path, images: int) -> Path:
    """Where a run keeps the checkpoint of this many images."""
    return run / "checkpoints" / f"{images:012d}"


def prune(run: Path, *, keep_last: int, keep_every: int = 0) -> None:
    """Remove old checkpoints; those at multiples of ``keep_every`` images stay."""
    for folder in checkpoints(run)[:-keep_last]:
        if not keep_every or int(folder.name) % keep_every:
            sealed.remove(folder)
