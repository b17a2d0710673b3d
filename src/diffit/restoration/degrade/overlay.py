"""Watermarks: half-transparent letters across an image."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffit.restoration.degrade.fields import places, to_image, to_light

# Letters of 5 x 7 points, a row in five bits: the same picture whatever fonts a machine has.
_LETTERS = {
    "A": (14, 17, 17, 31, 17, 17, 17),
    "D": (30, 17, 17, 17, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "F": (31, 16, 16, 30, 16, 16, 16),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "I": (14, 4, 4, 4, 4, 4, 14),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "M": (17, 27, 21, 21, 17, 17, 17),
    "N": (17, 25, 21, 19, 17, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "U": (17, 17, 17, 17, 17, 17, 14),
}


def watermark(clean: Tensor, generator: np.random.Generator) -> Tensor:
    """One random word, repeated at an angle, is blended over the image in white or black."""
    height, width = clean.shape[1:]
    letters = generator.choice(list(_LETTERS), size=int(generator.integers(4, 8)))
    points = word("".join(letters))
    y, x = places(height, width)
    angle = generator.uniform(-math.pi / 5, math.pi / 5)
    # Coordinates in points of the letters, turned; the word repeats with gaps around it.
    scale = generator.uniform(4, 9) * 9
    along = (x * math.cos(angle) + y * math.sin(angle) + generator.random()) * scale
    across = (y * math.cos(angle) - x * math.sin(angle) + generator.random()) * scale
    alpha = _repeated(points, across, along) * generator.uniform(0.25, 0.6)
    ink = float(generator.random() < 0.8)
    return to_image(to_light(clean) * (1 - alpha) + ink * alpha)


def word(letters: str) -> Tensor:
    """(13, 6 n + 6) of 0 and 1: the letters with the gaps to the next ones."""
    rows = torch.tensor([_LETTERS[letter] for letter in letters])
    bits = (rows[:, :, None] >> torch.arange(4, -1, -1)) & 1
    line = F.pad(bits, (0, 1)).permute(1, 0, 2).flatten(1)
    return F.pad(line, (0, 6, 0, 6)).float()


def _repeated(points: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """``points`` as an endless pattern at real coordinates, linear between them."""
    height, width = points.shape
    total = torch.zeros_like(row)
    for dy in (0, 1):
        for dx in (0, 1):
            top, left = row.floor() + dy, column.floor() + dx
            weight = (1 - (row - top).abs()) * (1 - (column - left).abs())
            total += weight * points[top.long() % height, left.long() % width]
    return total
