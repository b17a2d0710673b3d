"""Codecs: from the pixels of image files to the space that a model works in, and back."""

from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from diffit.codecs.autoencoder import Autoencoder, AutoencoderConfig
from diffit.codecs.pixels import Pixels, PixelsConfig

__all__ = ["Autoencoder", "AutoencoderConfig", "Codec", "CodecConfig", "Pixels", "PixelsConfig",
           "build_codec"]  # fmt: skip


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
        """The way back, to uint8, on the device of ``x``."""


CodecConfig = Annotated[PixelsConfig | AutoencoderConfig, Field(discriminator="name")]
"""The settings of any codec."""


def build_codec(config: CodecConfig) -> Codec:
    """The codec that a configuration describes; nothing is read until it is used."""
    if isinstance(config, AutoencoderConfig):
        return Autoencoder(config)
    return Pixels(config)
