"""Small things that operators share: their constants, numbers over batches, sizes."""

import math
from typing import Any

import torch
from torch import Tensor


class Constant:
    """A tensor of an operator, kept in each precision and on each device that asked for it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().cpu()
        self._kept: dict[Any, Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The tensor in the precision and on the device of ``x``."""
        key = (x.device, x.dtype)
        if key not in self._kept:
            dtype = x.dtype.to_complex() if self.value.is_complex() else x.dtype
            self._kept[key] = self.value.to(x.device, dtype)
        return self._kept[key]


def over(number: float | Tensor, like: Tensor) -> Tensor:
    """A number or (B,) as a tensor that multiplies ``like``, (B, ...)."""
    # A Python number would become float32 on its way.
    values = torch.as_tensor(number, dtype=None if isinstance(number, Tensor) else torch.float64)
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


def size(shape: tuple[int, ...]) -> int:
    """How many numbers ``shape`` holds."""
    return math.prod(shape)
