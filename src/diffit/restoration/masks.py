"""Masks for inpainting: (H, W) float64 tensors, 1 where a pixel is known, 0 where it is not."""

import numpy as np
import torch
from torch import Tensor


def box(height: int, width: int, generator: np.random.Generator, *, part: float = 0.5) -> Tensor:
    """A hole of ``part`` of each side, anywhere."""
    tall, wide = max(round(height * part), 1), max(round(width * part), 1)
    top = int(generator.integers(height - tall + 1))
    left = int(generator.integers(width - wide + 1))
    mask = _known(height, width)
    mask[top : top + tall, left : left + wide] = 0
    return mask


def random(
    height: int, width: int, generator: np.random.Generator, *, missing: float = 0.5
) -> Tensor:
    """Single pixels are missing, exactly ``missing`` of them, rounded down."""
    mask = _known(height, width).flatten()
    order = generator.permutation(height * width)
    mask[torch.from_numpy(order[: int(missing * height * width)])] = 0
    return mask.reshape(height, width)


def freeform(
    height: int, width: int, generator: np.random.Generator, *, thick: bool = True
) -> Tensor:
    """Strokes of a brush that turns now and then, as in DeepFill and LaMa (arXiv:2109.07161)."""
    side = min(height, width)
    strokes, thickness = (3, side / 5) if thick else (6, side / 24)
    y, x = np.mgrid[:height, :width]
    hole = np.zeros((height, width), dtype=bool)
    for _ in range(strokes):
        at = generator.random(2) * (height - 1, width - 1)
        angle = 2 * np.pi * generator.random()
        radius = max(thickness * (0.5 + generator.random()) / 2, 0.5)
        for _ in range(4):
            angle += generator.uniform(-0.6, 0.6) * np.pi
            length = side * generator.uniform(0.1, 0.35)
            to = at + length * np.array((np.sin(angle), np.cos(angle)))
            to = np.clip(to, 0, (height - 1, width - 1))
            hole |= distance_to_line(y, x, at, to) <= radius
            at = to
    return torch.from_numpy(~hole).double()


def every_nth(height: int, width: int, *, step: int = 2) -> Tensor:
    """One pixel in ``step`` of each row and column is known."""
    mask = torch.zeros(height, width, dtype=torch.float64)
    mask[::step, ::step] = 1
    return mask


def half(height: int, width: int) -> Tensor:
    """The left half is known."""
    mask = _known(height, width)
    mask[:, (width + 1) // 2 :] = 0
    return mask


def outpainting(height: int, width: int, *, part: float = 0.5) -> Tensor:
    """Only the middle is known, ``part`` of each side; what lies around it is to be expanded."""
    tall, wide = max(round(height * part), 1), max(round(width * part), 1)
    top, left = (height - tall) // 2, (width - wide) // 2
    mask = torch.zeros(height, width, dtype=torch.float64)
    mask[top : top + tall, left : left + wide] = 1
    return mask


def distance_to_line(
    y: np.ndarray, x: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Distance of pixels (y, x) to the segment between two points (y, x)."""
    span = end - start
    square = max(float(span @ span), 1e-12)
    along = np.clip(((y - start[0]) * span[0] + (x - start[1]) * span[1]) / square, 0, 1)
    distance: np.ndarray = np.hypot(y - start[0] - along * span[0], x - start[1] - along * span[1])
    return distance


def _known(height: int, width: int) -> Tensor:
    return torch.ones(height, width, dtype=torch.float64)
