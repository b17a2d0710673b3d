"""Codecs: from the pixels of image files to the space that a model works in, and back."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from diffit.config import Settings


class Codec(Protocol):
    """Encodes uint8 images to what a model sees, and decodes what it draws."""

    @property
    def channels(self) -> int | None:
        """Channels of the encoded space; None: those of the image."""

    @property
    def factor(self) -> int:
        """How many pixels a side of the image has for each of the encoded space."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 to (B, channels, H / factor, W / factor) float32, about unit size."""

    def decode(self, x: Tensor) -> Tensor:
        """The way back, to uint8."""


class PixelsConfig(Settings):
    """The model works on pixels: value / 127.5 - 1."""

    name: Literal["pixels"] = "pixels"
    rounding: Literal["nearest", "down"] = "nearest"
    """How drawn values become 0..255; `down` cuts the fraction off, as published ADM samples do."""


class Pixels:
    """Pixels as they are, scaled from 0..255 to [-1, 1]."""

    channels: int | None = None
    factor = 1

    def __init__(self, config: PixelsConfig | None = None) -> None:
        self.config = config or PixelsConfig()

    def encode(self, images: Tensor) -> Tensor:
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


CodecConfig = PixelsConfig
"""The settings of any codec; a second kind makes it a union told apart by `name`."""


def build_codec(config: CodecConfig) -> Codec:
    """The codec that a configuration describes."""
    return Pixels(config)
