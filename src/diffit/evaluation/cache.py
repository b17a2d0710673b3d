"""Features that were computed before, found by the content of the images they are of.

One file for each unit of images: `features/<2 digits>/<name>.safetensors`, named by a hash of the
images and of all that decides their features. A file is written whole or not at all, and checked
when it is read; one that is damaged is computed again. The oldest files go when there are too many.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffit.evaluation.features import Features
from diffit.fetch import cache_folder

LIMIT = 8 << 30
"""Bytes that the cache may take after a measurement."""


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features."""

    folder: Path

    def read(self, key: str, digests: Sequence[bytes]) -> Features | None:
        """The features kept under this key for these images, None if there are none intact."""
        path = self._path(key, digests)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                check = (file.metadata() or {}).get("blake2b")
        except (OSError, SafetensorError, ValueError):
            return None
        pool = tensors.get("pool")
        if check != _digest(tensors) or pool is None or len(pool) != len(digests):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: among the last to go
        return Features(pool, tensors.get("logits"), tensors.get("spatial"))

    def write(self, key: str, digests: Sequence[bytes], features: Features) -> None:
        """Keep features; a disk that is full or read-only only costs the next run its time."""
        path = self._path(key, digests)
        tensors = {
            name: tensor.contiguous()
            for name, tensor in features._asdict().items()
            if tensor is not None
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={"blake2b": _digest(tensors)})
            partial.replace(path)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                partial.unlink()

    def trim(self, limit: int = LIMIT) -> None:
        """Remove the files that were not used for longest until ``limit`` bytes are left."""
        found = []
        for path in self.folder.glob("*/*.safetensors"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _path(self, key: str, digests: Sequence[bytes]) -> Path:
        name = hashlib.sha256(b"".join((key.encode(), *digests))).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"


def open_cache() -> FeatureCache:
    """The user's cache, in the folder of all downloads."""
    return FeatureCache(cache_folder() / "features")


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
