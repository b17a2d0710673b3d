"""Weight files of feature extractors: found, downloaded with a checksum, read safely."""

import hashlib
import os
import pickle
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffit.errors import CheckpointError, UsageError
from diffit.fetch import cache_folder, file_sha256

INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_BYTES = 95_628_359
CHUNK = 1 << 20
PATIENCE_S = 30


def inception_file(*, download: bool, url: str = INCEPTION_URL) -> Path:
    """The cached Inception weights; if missing they are fetched, where ``download`` allows it."""
    path = cache_folder() / INCEPTION_URL.rpartition("/")[2]
    if path.exists():
        return path
    if not download:
        raise UsageError(
            "the Inception weights are not on this machine; add --download to fetch "
            f"{INCEPTION_BYTES >> 20} MiB from {url}, or fetch them elsewhere and name the file "
            "with --weights, or measure with --features digits-cnn or patches-cnn"
        )
    fetch(url, path, sha256=INCEPTION_SHA256, limit=INCEPTION_BYTES)
    return path


def fetch(url: str, path: Path, *, sha256: str, limit: int) -> None:
    """Download ``url`` to ``path``, which appears only when complete and with this checksum."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _download(url, partial, limit=limit)
        if found != sha256:
            raise CheckpointError(
                f"{url} has the checksum {found}, not {sha256}; it is damaged or another file: "
                "fetch it by another way and name it with --weights"
            )
        partial.replace(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(
            f"{url} cannot be fetched ({reason}); fetch it elsewhere and name the file with "
            "--weights"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, and the file's sha256, of a .safetensors file or a .pth state dict."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; name a .safetensors or .pth file of weights")
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():  # about the pickle's version, which nobody can choose
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError):
        raise CheckpointError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors; fetch "
            "it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no table of tensors by name; name a state dict")
    return state, file_sha256(path)


def _download(url: str, path: Path, *, limit: int) -> str:
    digest = hashlib.sha256()
    size = 0
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as source, path.open("wb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > limit:
                raise ValueError(f"it is larger than the expected {limit} bytes")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
