"""How images are brought before a network: the published protocols, and in what they differ.

Each tool of the field fixes a resizing and a scaling. The network is the same; the figures are not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffit.config import nearest
from diffit.errors import UsageError
from diffit.evaluation.resize import Rows, bicubic, half_pixel, legacy, resize

INPUT = 299
"""Inception's input."""
DINO_INPUT = 224


@dataclass(frozen=True)
class Protocol:
    """How an image is brought before Inception: resized to 299, then (x - shift) / scale."""

    name: str
    rows: Rows
    shift: float
    scale: float
    text: str
    """The resizing in words."""
    used: str
    """Whose figures these are."""
    clip: bool = False
    """Whether what bicubic interpolation overshoots is cut to [0, 255]."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 to (B, 3, 299, 299) float32; grey is repeated."""
        x = resize(images, INPUT, self.rows)
        x = ((x.clamp(0, 255) if self.clip else x) - self.shift) / self.scale
        return x.expand(-1, 3, -1, -1)

    @property
    def resizing(self) -> str:
        """What decides the numbers: protocols that agree here share their features."""
        return f"{self.rows.__name__} {self.shift:g} {self.scale:g} {self.clip}"


_TENSORFLOW = "bilinear without half-pixel centres (TensorFlow 1) to 299"
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "adm", legacy, 128, 128, _TENSORFLOW,
            "ADM, DiT, U-ViT, MDT, DiffiT on ImageNet; also sFID, IS, precision and recall",
        ),
        Protocol(
            "pytorch-fid", half_pixel, 127.5, 127.5, "bilinear with half-pixel centres to 299",
            "pytorch-fid, and much work on small data sets",
        ),
        Protocol(
            "clean", bicubic, 128, 128, "bicubic, antialiased (Pillow, in floats) to 299",
            "clean-fid", clip=True,
        ),
        # EDM's detector reproduces the graph's own resizing: the same numbers by another route.
        Protocol(
            "edm", legacy, 128, 128, _TENSORFLOW,
            "EDM and its successors, image-space DiffiT: against the whole training set",
        ),
    )
}  # fmt: skip


def named_protocols(names: str) -> tuple[str, ...]:
    """`adm`, `adm,clean` or `all` as names in `PROTOCOLS`; UsageError names one that is unknown."""
    if names == "all":
        return tuple(PROTOCOLS)
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in PROTOCOLS:
            raise UsageError(
                f"--protocol {name!r} is unknown; {nearest(name, [*PROTOCOLS, 'all'])}"
            )
    return tuple(dict.fromkeys(found))


DINO_TEXT = f"bicubic, antialiased (Pillow, in floats) to {DINO_INPUT}"
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def for_dino(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 to (B, 3, 224, 224) float32 with ImageNet's mean 0 and deviation 1."""
    x = resize(images, DINO_INPUT, bicubic).clamp(0, 255) / 255
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (_MEAN, _STD))
    return (x.expand(-1, 3, -1, -1) - mean) / std


Prepare = Callable[[Tensor], Tensor]
"""(B, C, H, W) uint8 to what a network takes."""
