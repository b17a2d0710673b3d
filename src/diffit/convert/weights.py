"""Reading files of weights that others wrote, without running anything that is in them."""

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffit.errors import CheckpointError
from diffit.fetch import read_json

PICKLES = (".pt", ".pth", ".th", ".ckpt", ".bin")
SETS = ("ema", "model_ema", "ema_model", "model", "state_dict", "net")
"""Sets of weights that a training checkpoint may hold, the best first."""

FILES = (
    "nnet_ema", "ema", "nnet", "model",
    "consolidated_ema_ternary", "consolidated_ema", "consolidated_ternary", "consolidated",
)  # fmt: skip
"""Names of files of weights in a training checkpoint, the best first."""
ARGUMENTS = "model_args"
"""Name of the file in which Large-DiT and TerDiT keep the arguments of a run."""
BESIDE = ("optimizer", "lr_scheduler", "scheduler", "step", "random_states_0", "scaler", ARGUMENTS)
"""Names of the files beside them."""

PART = re.compile(r"\.\d\d-of-(\d\d)$")
"""Ends the name of a file of fairscale: the first of one, .00-of-01, or of several parts."""

PREFIXES = ("module.", "_orig_mod.")
"""What wrappers of PyTorch put before the names of tensors."""

DIFFUSERS = "diffusion_pytorch_model"


@dataclass
class Source:
    """The tensors of a file or folder, and what is known beside them."""

    path: Path
    tensors: dict[str, Tensor]
    """Mapped into memory where the format allows: nothing is read before it is used."""
    files: tuple[Path, ...]
    weights: str = ""
    """Which set of several it is."""
    facts: dict[str, Any] = field(default_factory=dict)
    """`image_size`, `num_classes`, `class_names`, `qk_norm`, and `config` of diffusers, as far as
    known."""

    def sha256(self) -> str:
        """Of the one file, or of the list of hashes of several."""
        hashes = [sha256(file) for file in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(repr(hashes).encode()).hexdigest()


def read(path: Path, weights: str | None = None) -> Source:
    """A `.safetensors`, `.pt`, `.pth`, `.ckpt` or `.bin` file, or a folder.

    Args:
        path: the file; or a folder of diffusers, or of a training checkpoint with a file for each
            set of weights, as U-ViT and DiMR write it.
        weights: which set of a training checkpoint, such as `ema`; by default the best one.

    Raises:
        CheckpointError: it is none of these, damaged, or would run code.
    """
    if path.is_dir():
        source = _folder(path, weights)
    elif not path.exists():
        raise CheckpointError(f"{path} does not exist; name a file of weights or a folder")
    elif path.suffix == ".safetensors":
        source = Source(path, _safetensors(path), (path,))
    elif path.suffix in PICKLES:
        source = _unpack(_pickle(path), path, weights)
        source.facts = _arguments_beside(path) | source.facts
    else:
        raise CheckpointError(
            f"{path} is no file of weights; they end in .safetensors, {', '.join(PICKLES)}"
        )
    if weights and not source.weights:
        raise CheckpointError(f"{path} holds one set of weights; leave --weights {weights} out")
    if not source.tensors:
        raise CheckpointError(f"{path} holds no tensors")
    source.tensors = {_bare(name): tensor for name, tensor in source.tensors.items()}
    return source


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, or no safetensors file ({_line(error)}); fetch it again"
        ) from None


def _pickle(path: Path) -> Any:
    """The content of a file of `torch.save`, tensors and plain values alone."""
    _check_archive(path)
    mapped = zipfile.is_zipfile(path)
    try:
        # DiT's training script stores its arguments: a Namespace does nothing but hold them.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols: what matters is whether it loads
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors, which could run code and are not "
                "loaded; ask for a safetensors file, or save its state dict alone"
            ) from None
        raise CheckpointError(f"{path} is damaged, or no file of PyTorch; fetch it again") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError,
            IndexError, AssertionError):  # fmt: skip
        # What a cut or changed file makes of the unpickler is anyone's guess.
        raise CheckpointError(f"{path} is damaged, or no file of PyTorch; fetch it again") from None


def _check_archive(path: Path) -> None:
    """CheckpointError for an archive that would unpack to more than its own size."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CheckpointError(f"{path} is damaged, or no file of PyTorch; fetch it again") from None
    if unpacked > path.stat().st_size + (1 << 20):
        raise CheckpointError(f"{path} unpacks to {unpacked:,} bytes; files of PyTorch do not")


def _unpack(content: Any, path: Path, weights: str | None) -> Source:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no table of tensors")
    if _is_state(content):
        return Source(path, dict(content), (path,))
    sets = {str(name): part for name, part in content.items() if _is_state(part)}
    if not sets:
        keys = ", ".join(map(str, list(content)[:8]))
        raise CheckpointError(f"{path} holds no table of tensors, but {keys or 'nothing'}")
    if weights is not None and weights not in sets:
        raise CheckpointError(f"{path} has no weights {weights!r}; there are: {', '.join(sets)}")
    name = weights or next((name for name in SETS if name in sets), None)
    if name is None:
        raise CheckpointError(
            f"{path} holds several tables of tensors; choose with --weights: {', '.join(sets)}"
        )
    return Source(path, dict(sets[name]), (path,), name, _facts(content))


def _is_state(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and len(part) > 0
        and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in part.items())
        and all(_is_plain(t) for t in part.values())
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has its own memory, as one that was expanded from a few numbers has not."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _arguments_beside(path: Path) -> dict[str, Any]:
    """What `model_args.pth` in the folder of a file of Large-DiT or TerDiT says."""
    file = path.with_name(f"{ARGUMENTS}.pth")
    if not PART.search(path.stem) or not file.is_file():
        return {}
    content = _pickle(file)
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, no arguments; remove it")
    return _facts(content)


def _facts(content: Mapping[Any, Any]) -> dict[str, Any]:
    """What the training scripts of DiT, DiffiT-v2 and Large-DiT store beside the weights."""
    nested = (content.get("args"), content.get("config"))
    known = dict(content)
    for part in nested:
        known |= vars(part) if isinstance(part, argparse.Namespace) else {}
        known |= part if isinstance(part, Mapping) else {}
    found = {
        "image_size": known.get("image_size", known.get("resolution")),
        "num_classes": known.get("num_classes", known.get("n_classes")),
    }
    numbers = {key: value for key, value in found.items() if type(value) is int and value > 0}
    if type(known.get("qk_norm")) is bool:
        numbers["qk_norm"] = known["qk_norm"]
    names = known.get("class_names")
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return numbers | {"class_names": tuple(names)}
    return numbers


def _folder(path: Path, weights: str | None) -> Source:
    """A transformer of diffusers, alone or inside its pipeline; or a training checkpoint."""
    inner = path / "transformer" if (path / "transformer" / "config.json").is_file() else path
    if not (inner / "config.json").is_file():
        return _checkpoint(path, weights)
    config = read_json(inner / "config.json")
    tensors: dict[str, Tensor] = {}
    files = _weight_files(inner)
    for file in files:
        part = _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
        if not _is_state(part):
            raise CheckpointError(f"{file} holds no table of tensors")
        tensors |= part
    facts: dict[str, Any] = {"config": config}
    index = read_json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    labels = index.get("id2label")
    if isinstance(labels, dict) and all(isinstance(text, str) for text in labels.values()):
        ordered = tuple(labels.get(str(i)) for i in range(len(labels)))
        if None not in ordered:
            facts["class_names"] = ordered
    if (path / "vae" / "config.json").is_file():
        facts["codec"] = str((path / "vae").resolve())
    return Source(path, tensors, files, facts=facts)


def _checkpoint(path: Path, weights: str | None) -> Source:
    """A folder with a file for each set of weights, beside others of the optimiser."""
    kinds = (".safetensors", *PICKLES)
    files = {_set(f): f for f in sorted(path.iterdir()) if f.suffix in kinds}
    sets = {name: file for name, file in files.items() if name not in BESIDE}
    if not sets:
        raise CheckpointError(
            f"{path} is no folder of diffusers: it has no config.json and no transformer/; "
            "nor does it hold a file of weights"
        )
    if weights is not None and weights not in sets:
        raise CheckpointError(f"{path} has no weights {weights!r}; there are: {', '.join(sets)}")
    best = next((name for name in FILES if name in sets), None)
    name = weights or (next(iter(sets)) if len(sets) == 1 else best)
    if name is None:
        raise CheckpointError(
            f"{path} holds several files of weights; choose with --weights: {', '.join(sets)}"
        )
    source = read(sets[name])
    source.weights = source.weights or name
    return source


def _set(file: Path) -> str:
    """Name of the set of weights in a file; CheckpointError for a part of one."""
    part = PART.search(file.stem)
    if part and part[1] != "01":
        raise CheckpointError(
            f"{file} is one of {int(part[1])} parts that were trained on as many devices, each "
            "with scales of its own; this library reads models that are in one part"
        )
    return PART.sub("", file.stem)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / f"{DIFFUSERS}.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict):
            raise CheckpointError(f"{index} is damaged: it has no weight_map")
        files = tuple(folder / Path(str(name)).name for name in sorted(set(places.values())))
    else:
        candidates = [f"{DIFFUSERS}.safetensors", f"{DIFFUSERS}.bin"]
        files = tuple(folder / n for n in candidates if (folder / n).is_file())[:1]
    lost = [file.name for file in files if not file.is_file()]
    if lost or not files:
        missing = lost[0] if lost else f"{DIFFUSERS}.safetensors"
        raise CheckpointError(f"{folder} lacks {missing}; fetch it again")
    return files


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
