"""Blur kernels: (height, width) float64 tensors with odd sides that sum to 1."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffit.data.images import read_file, read_image
from diffit.errors import UsageError

MAX_SIDE = 1023
"""Larger kernels are refused."""


def gaussian(size: int, sigma: float) -> Tensor:
    """(size, size) Gaussian of standard deviation ``sigma`` pixels."""
    line = gaussian_line(size, sigma)
    return line[:, None] * line


def gaussian_line(size: int, sigma: float) -> Tensor:
    """(size,) Gaussian of standard deviation ``sigma`` pixels."""
    place = _places(size)
    return _normalised((-0.5 * (place / sigma) ** 2).exp())


def uniform(size: int) -> Tensor:
    """(size, size) box."""
    return torch.full((_odd(size), size), 1 / size**2, dtype=torch.float64)


def anisotropic(size: int, long: float, short: float, angle: float) -> Tensor:
    """(size, size) Gaussian, ``long`` pixels along ``angle`` (radians from the x axis)."""
    place = _places(size)
    y, x = place[:, None], place[None]
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    return _normalised((-0.5 * ((along / long) ** 2 + (across / short) ** 2)).exp())


def motion(size: int, generator: np.random.Generator, *, intensity: float = 0.5) -> Tensor:
    """(size, size) path of a shaking camera, after Boracchi and Foi (IEEE TIP 2012).

    A particle moves with inertia, is pulled back, and is jolted at random; its path is scaled
    to the kernel and drawn with bilinear weights.

    Args:
        size: odd side.
        generator: of the random path.
        intensity: 0 a straight line, 1 a scribble.
    """
    steps = 256
    path = np.zeros(steps, dtype=complex)
    velocity = np.exp(2j * np.pi * generator.random())
    for i in range(1, steps):
        jolt = complex(*generator.standard_normal(2)) * 0.1 * intensity
        if generator.random() < 0.02 * intensity:  # a rare jerk turns the camera around
            jolt -= 1.6 * velocity
        velocity += jolt - 0.005 * intensity * path[i - 1]
        velocity /= abs(velocity)
        path[i] = path[i - 1] + velocity
    path -= (path.real.max() + path.real.min()) / 2 + 0.5j * (path.imag.max() + path.imag.min())
    reach = max(np.abs(path.real).max(), np.abs(path.imag).max())
    return _normalised(_drawn(path * ((size - 1) / 2 / reach), _odd(size)))


def check_kernel(kernel: Tensor) -> Tensor:
    """The kernel as float64; UsageError if its sides are even, or it holds no usable numbers."""
    if kernel.ndim not in (2, 3) or 0 in kernel.shape:
        raise UsageError(f"a blur kernel has a height and a width, not shape {tuple(kernel.shape)}")
    height, width = kernel.shape[-2:]
    if height % 2 == 0 or width % 2 == 0:
        raise UsageError(f"a blur kernel of {height} x {width} has no centre; give odd sides")
    if not kernel.isfinite().all():
        raise UsageError("the blur kernel holds numbers that are not finite")
    total = kernel.double().sum((-2, -1))
    if (total.abs() < 1e-6 * kernel.double().abs().sum((-2, -1)).clamp(min=1e-12)).any():
        raise UsageError("the blur kernel sums to zero, so that it would erase the image")
    return kernel.double()


def read_kernel(path: Path) -> Tensor:
    """A kernel from an image file, or from a `.npy` file of numbers; it is made to sum to 1."""
    numbers = path.suffix.lower() == ".npy"
    array = _read_npy(path) if numbers else read_image(path, channels=1)[0]
    if array.ndim != 2 or max(array.shape) > MAX_SIDE:
        raise UsageError(
            f"{path} has shape {array.shape}; a blur kernel has a height and a width of at most "
            f"{MAX_SIDE}"
        )
    try:
        return _normalised(check_kernel(torch.from_numpy(array.astype(np.float64))))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _read_npy(path: Path) -> np.ndarray:
    read_file(path)  # says why it cannot be read
    try:
        # A map of the file: nothing is allocated, and no pickled object is read.
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
        if array.dtype.kind not in "fiu":
            raise TypeError(array.dtype)
    except (ValueError, TypeError, OSError):
        raise UsageError(f"{path} is no array of numbers; save one with numpy.save") from None
    return array


def _places(size: int) -> Tensor:
    return torch.arange(_odd(size), dtype=torch.float64) - size // 2


def _odd(size: int) -> int:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"a kernel's side is odd, not {size}")
    return size


def _normalised(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum()


def _drawn(path: np.ndarray, size: int) -> Tensor:
    """Points x + iy from the centre, each spread over its four nearest pixels."""
    kernel = np.zeros((size + 1, size + 1))
    x, y = path.real + size // 2, path.imag + size // 2
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (1 - np.abs(x - left - dx)) * (1 - np.abs(y - top - dy))
            np.add.at(kernel, (top + dy, left + dx), weight)
    return torch.from_numpy(kernel[:size, :size].copy())
