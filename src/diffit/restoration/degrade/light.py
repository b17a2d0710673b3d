"""Light: too little of it, or a shadow across the image."""

import math

import numpy as np
import torch
from torch import Tensor

from diffit.restoration.degrade.fields import clouds, places, softened, to_image, to_light


def low_light(clean: Tensor, generator: np.random.Generator) -> Tensor:
    """A dark exposure with the noise of its sensor.

    Retinex: the image is a reflectance seen under an uneven illumination, darkened by a gamma
    and a gain; then photons are counted, and the electronics add their own noise.
    """
    height, width = clean.shape[1:]
    illumination = 0.6 + 0.4 * clouds(height, width, generator)
    gamma, gain = generator.uniform(1.5, 2.5), generator.uniform(0.15, 0.45)
    light = gain * to_light(clean) ** gamma * illumination
    full = generator.uniform(200, 1500)
    photons = generator.poisson(light.double().clamp(min=0).numpy() * full).astype(np.float32)
    read = generator.standard_normal(tuple(clean.shape), dtype=np.float32)
    counted = torch.from_numpy(photons) / full
    return to_image(counted + torch.from_numpy(read) * generator.uniform(0.002, 0.012)).to(clean)


def shadow(clean: Tensor, generator: np.random.Generator) -> Tensor:
    """A soft-edged shadow; what lies in it gets a part of the light, and bluer."""
    height, width = clean.shape[1:]
    mask = softened(_shape(height, width, generator)[None], max(min(height, width) / 80, 0.3))
    ambient = generator.uniform(0.25, 0.55) * torch.tensor([0.92, 1.0, 1.1])
    ambient = ambient[:, None, None] if len(clean) == 3 else ambient.mean()
    return to_image(to_light(clean) * (1 - mask * (1 - ambient)))


def _shape(height: int, width: int, generator: np.random.Generator) -> Tensor:
    """(H, W) of 0 and 1: a convex outline around a random place, its edge waved by clouds."""
    y, x = places(height, width)
    cy, cx = generator.uniform(0.25, 0.75, size=2) * (y.max().item(), x.max().item())
    wave = 0.06 * (clouds(height, width, generator) - 0.5)
    inside = torch.ones(height, width, dtype=torch.bool)
    for k in range(5):
        angle = 2 * math.pi * (k + generator.uniform(0, 0.8)) / 5
        reach = generator.uniform(0.12, 0.4)
        inside &= (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle) + wave < reach
    return inside.float()
