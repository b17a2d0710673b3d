"""Real-world super-resolution: the second-order pipeline of Real-ESRGAN (arXiv:2107.10833).

Blur, resizing, noise and JPEG, twice, with a final sinc filter; the probabilities and ranges are
those of its released configuration. What comes out is enlarged to the size of the image.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffit.restoration import kernels
from diffit.restoration.degrade.fields import blurred, resized, to_image, to_light
from diffit.restoration.operators.jpeg import Jpeg


class Order(NamedTuple):
    """The ranges of one round."""

    blur: float
    """Probability of a blur."""
    widths: tuple[float, float]
    """Standard deviations of the blur."""
    scales: tuple[float, float]
    chances: tuple[float, float, float]
    """Probabilities to enlarge, reduce, keep."""
    gaussian: tuple[float, float]
    """Standard deviations of Gaussian noise, of 255."""
    poisson: tuple[float, float]
    """Strengths of photon noise."""


FIRST = Order(1.0, (0.2, 3.0), (0.15, 1.5), (0.2, 0.7, 0.1), (1, 30), (0.05, 3.0))
SECOND = Order(0.8, (0.2, 1.5), (0.3, 1.2), (0.3, 0.4, 0.3), (1, 25), (0.05, 2.5))
QUALITIES = (30, 95)


def real_world(clean: Tensor, generator: np.random.Generator, *, factor: int = 4) -> Tensor:
    """The image as an unknown camera and the web may leave it, ``factor`` times too small."""
    height, width = clean.shape[1:]
    light = _round(to_light(clean), generator, FIRST, (height, width))
    light = _compressed(light, generator)
    light = _round(light, generator, SECOND, (height, width))
    small = (max(height // factor, 1), max(width // factor, 1))
    if generator.random() < 0.5:
        light = _compressed(_sharp(_resized(light, generator, small), generator), generator)
    else:
        light = _sharp(_resized(_compressed(light, generator), generator, small), generator)
    return to_image(resized(light.clamp(0, 1), height, width))


def _round(
    light: Tensor, generator: np.random.Generator, order: Order, size: tuple[int, int]
) -> Tensor:
    if generator.random() < order.blur:
        light = blurred(light, _kernel(generator, order))
    low, high = order.scales
    way = generator.choice(3, p=order.chances)
    scale = (generator.uniform(1, high), generator.uniform(low, 1), 1.0)[way]
    target = (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))
    return _noisy(_resized(light, generator, target), generator, order).clamp(0, 1)


def _kernel(generator: np.random.Generator, order: Order) -> Tensor:
    size = 2 * int(generator.integers(3, 11)) + 1
    if generator.random() < 0.1:
        return sinc(size, generator.uniform(math.pi / 3, math.pi))
    long, short = generator.uniform(*order.widths, size=2)
    if generator.random() < 0.5:
        short = long
    return kernels.anisotropic(size, long, short, generator.uniform(-math.pi, math.pi))


def sinc(size: int, cutoff: float) -> Tensor:
    """(size, size) ideal low-pass of frequencies below ``cutoff`` (radians a pixel): it rings."""
    place = torch.arange(size, dtype=torch.float64) - size // 2
    radius = (place[:, None] ** 2 + place**2).sqrt()
    bessel: Tensor = torch.special.bessel_j1(cutoff * radius)
    kernel = cutoff * bessel / (2 * math.pi * radius.clamp(min=1e-9))
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return kernel / kernel.sum()


def _sharp(light: Tensor, generator: np.random.Generator) -> Tensor:
    if generator.random() < 0.8:
        size = 2 * int(generator.integers(3, 11)) + 1
        light = blurred(light, sinc(size, generator.uniform(math.pi / 3, math.pi)))
    return light.clamp(0, 1)


def _resized(light: Tensor, generator: np.random.Generator, size: tuple[int, int]) -> Tensor:
    mode = str(generator.choice(["area", "bilinear", "bicubic"]))
    if mode == "area":
        return F.interpolate(light[None], size, mode="area")[0]
    return F.interpolate(light[None], size, mode=mode, antialias=True)[0]


def _noisy(light: Tensor, generator: np.random.Generator, order: Order) -> Tensor:
    grey = generator.random() < 0.4
    shape = (1, *light.shape[1:]) if grey else tuple(light.shape)
    draw = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(light)
    if generator.random() < 0.5:
        return light + draw * (generator.uniform(*order.gaussian) / 255)
    # Photon noise in its normal limit: the variance grows with the light.
    strength = generator.uniform(*order.poisson)
    return light + draw * (light.clamp(0, 1) / 255).sqrt() * strength


def _compressed(light: Tensor, generator: np.random.Generator) -> Tensor:
    quality = int(generator.integers(QUALITIES[0], QUALITIES[1] + 1))
    return to_light(Jpeg(tuple(light.shape), quality)(to_image(light)[None])[0]).clamp(0, 1)
