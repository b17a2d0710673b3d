"""EDM's non-leaking augmentation (Karras et al., arXiv:2206.00364, section 5 and appendix F.2).

Training images are mirrored, scaled, rotated, stretched and shifted at random, and the network is
told how by nine numbers. In sampling these are zero, so that nothing of it shows in what is drawn.

Images are warped at twice their resolution between a pair of orthogonal wavelet filters, as in
StyleGAN2-ADA (arXiv:2006.06676): fine detail neither aliases nor blurs, and a warp that moves
nothing gives the image back. Beyond its edges an image goes on as its own reflection.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit import draws

SCALE_STD = 0.2
"""Scales are 2^(0.2 n) with n ~ N(0, 1), both of the whole and of the stretch."""
SHIFT_STD = 0.125
"""Shifts are 0.125 n of the image's width and height."""

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Daubechies' least asymmetric wavelet with six vanishing moments: the low-pass filter."""
_OFFSET = 5  # tap of a pixel's own first sample, so that the filter lies evenly around it
_CENTRE = sum(k * h for k, h in enumerate(SYM6)) / sum(SYM6) - _OFFSET
"""Pixel j lies at 2 j + _CENTRE among the samples of twice the resolution."""
_SUPPORT = 3  # pixels that the filter reaches to each side


class Augmentation(NamedTuple):
    """What is done to each of B images; zeros leave an image as it is. Angles turn to the left."""

    mirror: Tensor
    """(B,) bool: left and right exchanged."""
    upend: Tensor
    """(B,) bool: top and bottom exchanged."""
    scale: Tensor
    """(B,): the image grows by 2^(0.2 scale)."""
    angle: Tensor
    """(B,): rotation in radians."""
    stretch: Tensor
    """(B,): it grows by 2^(0.2 stretch) along one axis and shrinks by as much across it."""
    axis: Tensor
    """(B,): angle of that axis in radians."""
    shift: Tensor
    """(B, 2): it moves by 0.125 shift of its width to the right and of its height down."""


def augment_parameters(seed: int, numbers: Iterable[int], probability: float) -> Augmentation:
    """Draw what happens to images ``numbers`` of a run; probability 0 does nothing at all.

    Mirroring has probability 1/2 whatever ``probability`` is; each other kind happens with
    ``probability``, of which upending does nothing in half of the cases.
    """
    rows = [_draw(seed, int(n), probability) for n in numbers]
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 8)
    mirror, upend, scale, angle, stretch, axis = table[:, :6].unbind(1)
    return Augmentation(mirror.bool(), upend.bool(), scale, angle, stretch, axis, table[:, 6:])


def augment(images: Tensor, parameters: Augmentation) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) images in [-1, 1] to augmented ones and (B, 9) labels for the network."""
    mirror, upend = (p.to(images.device)[:, None, None, None] for p in parameters[:2])
    images = torch.where(mirror, images.flip(-1), images)
    images = torch.where(upend, images.flip(-2), images)
    moved = moves(parameters).nonzero()[:, 0]
    if len(moved):
        # The others stay as they are to the last bit.
        some = Augmentation(*(p[moved] for p in parameters))
        place = moved.to(images.device)
        images = images.index_copy(0, place, warp(images[place], *inverse_map(some, images)))
    return images, augment_labels(parameters).to(images.device)


def augment_labels(parameters: Augmentation) -> Tensor:
    """(B, 9) float32: mirror, upend, scale, angle (cos - 1, sin), stretch (2), shift (2)."""
    p = parameters
    columns = [
        p.mirror,
        p.upend,
        p.scale,
        p.angle.cos() - 1,
        p.angle.sin(),
        p.stretch * p.axis.cos(),
        p.stretch * p.axis.sin(),
        p.shift[:, 0],
        p.shift[:, 1],
    ]
    return torch.stack([column.float() for column in columns], dim=1)


def moves(parameters: Augmentation) -> Tensor:
    """(B,) bool: whether pixels move otherwise than by mirroring and upending."""
    p = parameters
    return (p.scale != 0) | (p.angle != 0) | (p.stretch != 0) | (p.shift != 0).any(1)


def inverse_map(parameters: Augmentation, images: Tensor) -> tuple[Tensor, Tensor]:
    """Where a place of the new image comes from: matrix (B, 2, 2) and shift (B, 2), float64.

    In pixels, x to the right and y down from the middle: old = matrix @ (new - shift).
    """
    p = parameters
    size = torch.tensor(images.shape[:-3:-1], dtype=torch.float64)  # width, height
    grow, stretch = 2 ** (SCALE_STD * p.scale), 2 ** (SCALE_STD * p.stretch)
    along = torch.diag_embed(torch.stack([stretch, 1 / stretch], dim=1))
    stretched = _rotation(p.axis) @ along @ _rotation(-p.axis)
    forward = stretched @ _rotation(p.angle) * grow[:, None, None]
    return torch.linalg.inv(forward), SHIFT_STD * p.shift * size


def warp(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """(B, C, H, W) images resampled so that the new at place q is the old at matrix @ (q - shift).

    Args:
        images: any float type and device.
        matrix: (B, 2, 2) float64, on pixel coordinates (x, y) from the middle of the image.
        shift: (B, 2) float64, in pixels.
    """
    height, width = images.shape[-2:]
    fine = _rise(height, images) @ images @ _rise(width, images).mT
    places = _places(height, width, matrix, shift, fine)
    # (2 i + 1) / size - 1: the coordinate in which grid_sample counts sample i.
    size = torch.tensor(fine.shape[:-3:-1], dtype=torch.float64)
    normed = ((2 * places + 1) / size - 1).to(images)
    moved = F.grid_sample(fine, normed, padding_mode="reflection", align_corners=False)
    return _fall(height, images) @ moved @ _fall(width, images).mT


def _places(height: int, width: int, matrix: Tensor, shift: Tensor, fine: Tensor) -> Tensor:
    """(B, 2 (H + 6), 2 (W + 6), 2) places in the fine old image for samples of the fine new one."""

    def pixels(size: int) -> Tensor:
        samples = torch.arange(2 * (size + 2 * _SUPPORT), dtype=torch.float64)
        return (samples - _CENTRE) / 2 - _SUPPORT - (size - 1) / 2

    y, x = torch.meshgrid(pixels(height), pixels(width), indexing="ij")
    new = torch.stack([x, y], dim=-1) - shift[:, None, None]
    old = torch.einsum("bij,bhwj->bhwi", matrix, new)
    size = torch.tensor([width, height], dtype=torch.float64)
    # `fine` begins one whole image before the old one, see _rise.
    return 2 * (old + (size - 1) / 2 + size) + _CENTRE


def _rise(size: int, like: Tensor) -> Tensor:
    """(6 size, size): a row of pixels, reflected to both sides, at twice the resolution."""
    return _rising(size).to(like)


def _fall(size: int, like: Tensor) -> Tensor:
    """(size, 2 (size + 6)): the way back, for the middle part."""
    return _falling(size).to(like)


@lru_cache(maxsize=8)
def _rising(size: int) -> Tensor:
    matrix = torch.zeros(6 * size, size, dtype=torch.float64)
    for sample in range(6 * size):
        for tap, weight in enumerate(SYM6):
            if (sample + _OFFSET - tap) % 2 == 0:
                pixel = (sample + _OFFSET - tap) // 2 - size
                matrix[sample, _reflected(pixel, size)] += math.sqrt(2) * weight
    return matrix


@lru_cache(maxsize=8)
def _falling(size: int) -> Tensor:
    matrix = torch.zeros(size, 2 * (size + 2 * _SUPPORT), dtype=torch.float64)
    for pixel in range(size):
        for tap, weight in enumerate(SYM6):
            matrix[pixel, 2 * (pixel + _SUPPORT) + tap - _OFFSET] = weight / math.sqrt(2)
    return matrix


def _reflected(pixel: int, size: int) -> int:
    """Number of the pixel that stands at ``pixel`` when a row goes on as its reflection."""
    period = max(2 * (size - 1), 1)
    pixel %= period
    return min(pixel, period - pixel) if size > 1 else 0


def _rotation(angle: Tensor) -> Tensor:
    """(B, 2, 2): turns to the left, where y points down."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)


def _draw(seed: int, number: int, probability: float) -> list[float]:
    if probability == 0:
        return [0.0] * 8
    generator = draws.generator(seed, number, "augment")
    # Every number is drawn whether it is used or not, so that none depends on the probability.
    upend, scale, turn, stretch, shift = generator.random(5) < probability
    mirror, upside_down, slanted = generator.random(3) < 0.5
    angle, axis = generator.uniform(-math.pi, math.pi, 2)
    n_scale, n_stretch, n_x, n_y = generator.standard_normal(4)
    return [
        float(mirror),
        float(upend and upside_down),
        n_scale * scale,
        angle * turn,
        n_stretch * stretch,
        axis * (stretch and slanted),
        n_x * shift,
        n_y * shift,
    ]
