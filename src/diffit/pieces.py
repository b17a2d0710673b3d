"""Tensors that lie in pieces in several safetensors files.

torch.distributed.checkpoint cuts them so: each process of a sharded run writes the pieces that it
holds, and the header of a file says where in the whole tensor each of its pieces begins.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

OFFSETS = "DCP_SHARDING_INFO"
"""Entry of the header with the place of each piece."""


class Piece(NamedTuple):
    """A block of a tensor, and the file that holds it."""

    file: Path
    start: tuple[int, ...]
    shape: tuple[int, ...]


class PiecedTensors(Mapping[str, Tensor]):
    """Whole tensors of some files, each put together when it is asked for.

    Args:
        files: safetensors files with all pieces of all tensors.
        prefix: only tensors whose names begin so, without it.

    Raises:
        SafetensorError: for what is no such file.
        ValueError: if pieces of a tensor are missing, or lie over each other.
    """

    def __init__(self, files: Sequence[Path], *, prefix: str = "") -> None:
        self.prefix = prefix
        self._pieces: dict[str, list[Piece]] = {}
        for file in files:
            self._look_at(file)
        self.shapes = {name: _whole(name, pieces) for name, pieces in self._pieces.items()}

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        whole: Tensor | None = None
        for piece in self._pieces[name]:
            with safe_open(piece.file, framework="pt") as file:
                part: Tensor = file.get_tensor(self.prefix + name)
            if piece.shape == shape:
                return part
            if whole is None:
                whole = torch.empty(shape, dtype=part.dtype)
            whole[tuple(map(slice, piece.start, _end(piece)))] = part
        assert whole is not None  # `_whole` has seen that there are pieces
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _look_at(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            starts = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
            for key in file.keys():  # noqa: SIM118
                if not key.startswith(self.prefix):
                    continue
                shape = tuple(file.get_slice(key).get_shape())
                start = starts.get(key, {}).get("saved_offsets", [0] * len(shape))
                piece = Piece(path, tuple(start), shape)
                self._pieces.setdefault(key.removeprefix(self.prefix), []).append(piece)


def _whole(name: str, pieces: list[Piece]) -> tuple[int, ...]:
    """Shape of the tensor that pieces make up."""
    dims = {(len(piece.start), len(piece.shape)) for piece in pieces}
    if len(dims) != 1 or any(a != b for a, b in dims):
        raise ValueError(f"the pieces of {name} have different numbers of dimensions")
    shape = tuple(map(max, zip(*map(_end, pieces), strict=True)))
    inside = sum(_size(piece.shape) for piece in pieces)
    if inside != _size(shape) or _overlap(pieces):
        raise ValueError(f"the pieces of {name} do not make up a tensor of shape {shape}")
    return shape


def _overlap(pieces: list[Piece]) -> bool:
    # Sharding cuts the first dimension: sorted by it, only neighbours can meet.
    ordered = sorted((p for p in pieces if _size(p.shape)), key=lambda piece: piece.start)
    return any(
        all(a < d and c < b for a, b, c, d in zip(p.start, _end(p), q.start, _end(q), strict=True))
        for p, q in itertools.pairwise(ordered)
    )


def _end(piece: Piece) -> tuple[int, ...]:
    return tuple(a + n for a, n in zip(piece.start, piece.shape, strict=True))


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
