"""Masks for inpainting: (H, W) float64 tensors, 1 where a pixel is known, 0 where it is not."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffit.data.images import read_image
from diffit.errors import UsageError


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
    strokes, thickness = (3, side / 8) if thick else (6, side / 24)
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


def frequency_lines(
    width: int, generator: np.random.Generator, *, acceleration: int, centre: float = 0.08
) -> Tensor:
    """(width,) in the order of the FFT: 1 in ``acceleration`` columns of frequencies is measured.

    The lowest ones, ``centre`` of all, always are; the others are drawn, as fastMRI does
    (arXiv:1811.08839).
    """
    lowest = torch.fft.fftfreq(width).abs().argsort(stable=True).numpy()
    count = max(width // acceleration, 1)
    middle = min(max(round(width * centre), 1), count)
    others = generator.permutation(lowest[middle:])[: count - middle]
    lines = torch.zeros(width, dtype=torch.float64)
    lines[torch.from_numpy(np.concatenate([lowest[:middle], others]))] = 1
    return lines


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """The mask in an image file: white is known, black is not; UsageError if it does not fit."""
    levels = torch.from_numpy(read_image(path, channels=1)[0])
    if tuple(levels.shape) != (height, width):
        raise UsageError(
            f"the mask {path} is {levels.shape[0]} x {levels.shape[1]} pixels and the image "
            f"{height} x {width}; give a mask of the size of the image"
        )
    known = (levels >= 128).double()
    if known.min() == known.max():
        state = "white: nothing is missing" if known.min() == 1 else "black: nothing is known"
        raise UsageError(f"the mask {path} is all {state}; paint black what is to be filled in")
    return known
