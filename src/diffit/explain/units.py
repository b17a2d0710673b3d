"""Lengths and images in the two units of pixels: [-1, 1], the library's own, and [0, 1].

The literature states noise, attacks and radii for pixels in [0, 1]; where they lie in [-1, 1] the
same length is twice as large. Nothing is ever guessed: whoever gives a length says its unit.
"""

from typing import Literal

import torch
from torch import Tensor

from diffit.errors import DataError

Units = Literal["01", "pm1"]
"""01: pixels lie in [0, 1]; pm1: in [-1, 1]."""

SCALE: dict[Units, float] = {"01": 2.0, "pm1": 1.0}
"""How long, for pixels in [-1, 1], a length of 1 in other units is."""


def to_pm1(length: float, units: Units) -> float:
    """A standard deviation, a distance or a radius in the units of pixels in [-1, 1]."""
    return length * SCALE[units]


def from_pm1(length: float, units: Units) -> float:
    """The inverse of `to_pm1`."""
    return length / SCALE[units]


def in_both(length: float) -> dict[Units, float]:
    """A length for pixels in [-1, 1], as reports state it: under the name of each unit."""
    return {units: from_pm1(length, units) for units in SCALE}


def images_to_pm1(images: Tensor) -> Tensor:
    """Images with values in [0, 1] to [-1, 1]."""
    return images * 2 - 1


def images_from_pm1(images: Tensor) -> Tensor:
    """Images with values in [-1, 1] to [0, 1]."""
    return (images + 1) / 2


def check_images(images: Tensor) -> None:
    """DataError unless these are (B, C, H, W) images with values in [-1, 1].

    Images in [0, 1] are valid images in [-1, 1], only pale: nobody can tell them apart.
    """
    if images.ndim != 4 or not images.is_floating_point() or not images.numel():
        raise DataError(
            f"images must be a floating tensor (B, C, H, W), this one is {images.dtype} "
            f"{tuple(images.shape)}"
        )
    low, high = (float(end) for end in torch.aminmax(images.detach()))
    # A resize with a negative kernel, or a sum in float32, may step over the edge by a little.
    if not -1.001 <= low <= high <= 1.001:
        raise DataError(
            f"images have values from {low:g} to {high:g}; they must lie in [-1, 1]: divide "
            "uint8 by 127.5 and subtract 1, or pass those in [0, 1] through images_to_pm1"
        )
