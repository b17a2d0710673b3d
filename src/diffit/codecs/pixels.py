"""Pixels as they are, scaled from 0..255 to [-1, 1]."""

from typing import Literal

import torch
from torch import Tensor

from diffit.config import Settings

Rounding = Literal["nearest", "down"]


class PixelsConfig(Settings):
    """The model works on pixels: value / 127.5 - 1."""

    name: Literal["pixels"] = "pixels"
    rounding: Rounding = "nearest"
    """How drawn values become 0..255; `down` cuts the fraction off, as published ADM samples do."""


class Pixels:
    """Pixels as they are, scaled from 0..255 to [-1, 1]."""

    channels: int | None = None
    factor = 1

    def __init__(self, config: PixelsConfig | None = None) -> None:
        self.config = config or PixelsConfig()

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 to float32 in [-1, 1]."""
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8, not {images.dtype}")
        return images.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of any float dtype to uint8; values beyond [-1, 1] are clipped.

        ValueError if a value is not finite: no pixel stands for it.
        """
        if not torch.isfinite(x).all():
            raise ValueError("the images to decode hold values that are not finite")
        # In float32 and in this form every encoded value comes back, also when fractions are cut
        # off; (x + 1) * 127.5 would lose one level here and there.
        scaled = x.to(torch.float32) * 127.5 + 127.5
        if self.config.rounding == "nearest":
            scaled = scaled + 0.5  # then the cut rounds, exact halves up
        return scaled.clamp(0, 255).to(torch.uint8)
