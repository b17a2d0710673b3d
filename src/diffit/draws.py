"""Random draws that follow from (seed, position, purpose) alone.

Philox (Salmon et al., SC 2011) is counter-based: a draw is a function of its key and counter, so
that no draw depends on batch size, order, process count or device. Everything is drawn on the CPU.
"""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

_WORD = 1 << 64


def generator(seed: int, number: int, purpose: str) -> np.random.Generator:
    """The stream of one position: image ``number`` of a run with ``seed``, for one ``purpose``."""
    key = np.array([seed % _WORD, zlib.crc32(purpose.encode())], dtype=np.uint64)
    # The lower counter words advance with the draws; the third keeps positions apart for ever.
    counter = np.array([0, 0, number % _WORD, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, numbers: Iterable[int], purpose: str, shape: Sequence[int]) -> Tensor:
    """(B, *shape) float32 unit-normal draws, row b belonging to ``numbers[b]`` alone."""
    rows = [
        generator(seed, int(n), purpose).standard_normal(tuple(shape), dtype=np.float32)
        for n in numbers
    ]
    return torch.from_numpy(np.stack(rows) if rows else np.empty((0, *shape), np.float32))


def uniform(seed: int, numbers: Iterable[int], purpose: str) -> Tensor:
    """(B,) float64 draws from the open interval (0, 1), one for each of ``numbers``."""
    # random() may return 0; the midpoints of a 2^53 grid never reach either end.
    rows = [
        (int(generator(seed, int(n), purpose).integers(1 << 53)) + 0.5) / (1 << 53) for n in numbers
    ]
    # (2^53 - 0.5) / 2^53 rounds to 1 in float64; the largest double below 1 stands for it.
    return torch.tensor(rows, dtype=torch.float64).clamp(max=1 - 2.0**-53)


def integers(seed: int, numbers: Iterable[int], purpose: str, high: int) -> Tensor:
    """(B,) int64 draws from 0 .. high - 1, one for each of ``numbers``."""
    rows = [int(generator(seed, int(n), purpose).integers(high)) for n in numbers]
    return torch.tensor(rows, dtype=torch.int64)
