"""Weather: rain, drops on the lens, snow and haze, drawn onto a clean image."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffit.restoration.degrade.fields import (
    blurred,
    clouds,
    places,
    softened,
    stretched,
    to_image,
    to_light,
)
from diffit.restoration.kernels import anisotropic


def rain(clean: Tensor, generator: np.random.Generator) -> Tensor:
    """Bright streaks of one direction are added, in two layers (Rain100's model), and a veil."""
    height, width = clean.shape[1:]
    side = min(height, width)
    angle = math.pi / 2 + generator.uniform(-0.5, 0.5)
    streaks = torch.zeros(1, height, width)
    for nearness in (1.0, 2.0):
        length = nearness * side * generator.uniform(0.02, 0.05)
        thickness = nearness * max(side / 400, 0.35)
        size = 2 * max(round(2.5 * length), 1) + 1
        drops = _specks(height, width, generator, share=0.1 / (size * thickness))
        streaks = streaks + blurred(
            drops[None] * size * thickness, anisotropic(size, length, thickness, angle)
        )
    veil = generator.uniform(0.02, 0.12)
    strength = generator.uniform(0.5, 1.0)
    light = to_light(clean) * (1 - veil) + veil * 0.8
    return to_image(light + strength * streaks.clamp(max=0.9))


def raindrops(clean: Tensor, generator: np.random.Generator) -> Tensor:
    """Drops on the lens, each a small, blurred, upside-down view of what lies around it."""
    height, width = clean.shape[1:]
    light = to_light(clean)
    soft = softened(light, max(min(height, width) / 60, 0.5))
    y, x = places(height, width)
    for _ in range(int(generator.integers(8, 24))):
        cy, cx = generator.random(2) * (y.max().item(), x.max().item())
        radius = generator.uniform(0.02, 0.07)
        dy, dx = (y - cy) / (radius * generator.uniform(1, 1.6)), (x - cx) / radius
        inside = (1 - dy**2 - dx**2).clamp(min=0)
        # Through a drop, as through a lens, the view is turned around its middle.
        view = _seen(soft, cy - 6 * radius * dy + 0 * dx, cx - 6 * radius * dx + 0 * dy)
        alpha = (3 * inside).clamp(max=1)
        light = light * (1 - alpha) + alpha * (view * 0.9 + 0.1 * inside)
    return to_image(light)


def snow(clean: Tensor, generator: np.random.Generator) -> Tensor:
    """Flakes of three sizes cover the image, alpha by alpha (Snow100K's model)."""
    height, width = clean.shape[1:]
    side = min(height, width)
    light, wind = to_light(clean), generator.uniform(0, math.pi)
    for nearness, share in ((0.5, 0.012), (1.0, 0.004), (2.2, 0.0008)):
        radius = nearness * max(side / 140, 0.5)
        size = 2 * max(round(4 * radius), 1) + 1
        share = share * (128 / side) ** 2 * generator.uniform(0.5, 1.5)
        flakes = _specks(height, width, generator, share=max(share, 2 / (height * width)))
        kernel = anisotropic(size, radius * generator.uniform(1, 1.8), radius, wind)
        alpha = (blurred(flakes[None], kernel / kernel.max()) * 1.2).clamp(max=1)
        light = light * (1 - alpha) + alpha * generator.uniform(0.9, 1.0)
    return to_image(light)


def haze(clean: Tensor, generator: np.random.Generator) -> Tensor:
    """I = J t + A (1 - t) with t = exp(-beta d): Koschmieder's law, as RESIDE makes its images.

    A photograph has no depth; the proxy here grows towards the top and is broken up by clouds.
    """
    height, width = clean.shape[1:]
    y, _ = places(height, width)
    depth = stretched(
        0.7 * (1 - y / y.max().clamp(min=1e-6)) + 0.5 * clouds(height, width, generator)
    )
    transmission = (-generator.uniform(0.8, 2.2) * (0.15 + depth)).exp()
    tint = generator.uniform(0.75, 1.0) + generator.uniform(-0.03, 0.03, size=len(clean))
    air = torch.from_numpy(tint).float()[:, None, None]
    return to_image(to_light(clean) * transmission + air * (1 - transmission))


def _specks(height: int, width: int, generator: np.random.Generator, *, share: float) -> Tensor:
    """(H, W) single bright pixels, ``share`` of all, of brightness 0.5 to 1."""
    chosen = torch.from_numpy(generator.random((height, width), dtype=np.float32)) < share
    brightness = torch.from_numpy(generator.uniform(0.5, 1, (height, width))).float()
    return chosen * brightness


def _seen(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The image at coordinates (H, W) of `places`, mirrored beyond its borders."""
    height, width = image.shape[1:]
    longer = max(height, width)
    grid = torch.stack(
        [2 * x * longer / max(width - 1, 1) - 1, 2 * y * longer / max(height - 1, 1) - 1], dim=-1
    )
    return F.grid_sample(
        image[None], grid[None].to(image), padding_mode="reflection", align_corners=True
    )[0]
