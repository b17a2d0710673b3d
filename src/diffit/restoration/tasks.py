"""The tasks of restoration by name: what is measured of an image, and how a degraded one looks.

A task with an operator is solved by any denoiser, through the methods of this package; every task
makes the pairs (clean, degraded) that a model can be trained on. Images are (C, H, W) in [-1, 1].
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from diffit import draws
from diffit.config import nearest
from diffit.errors import UsageError
from diffit.restoration import kernels, masks
from diffit.restoration.degrade import noise as noises
from diffit.restoration.operators import (
    BlurDecimation,
    CircularBlur,
    Identity,
    LinearOperator,
    Mask,
    Operator,
    average_pooling,
    bicubic,
    colorization,
    enlarge,
    separable_blur,
)

Shape = tuple[int, ...]
Build = Callable[[Shape, np.random.Generator], Operator]
"""(C, H, W) and the stream of what is random about an operator, to the operator."""
Degrade = Callable[[Tensor, np.random.Generator], Tensor]
Picture = Callable[[Operator, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One way in which images are degraded."""

    name: str
    about: str
    """One line for tables and help texts."""
    build: Build | None = None
    """Makes the operator; None for what only a trained model can undo."""
    noise: float = 0.0
    """Standard deviation of the noise of a measurement, in the units of [-1, 1]."""
    spoil: Degrade | None = None
    """(y, generator) to y with noise, where it is not normal with ``noise`` everywhere."""
    show: Picture | None = None
    """Makes a picture of a measurement; by default the measurement is one."""
    synthesise: Degrade | None = None
    """Degrades an image where there is no operator."""
    varies: bool = False
    """Whether the operator follows from the seed; otherwise it is the same for all images."""

    def operator(self, shape: Shape, seed: int) -> Operator | None:
        """The operator for images of ``shape``; its mask or kernel follows from ``seed``."""
        if self.build is None:
            return None
        return self.build(shape, draws.generator(seed, 0, self.name))

    def measure(
        self, operator: Operator, clean: Tensor, generators: Sequence[np.random.Generator]
    ) -> Tensor:
        """(B, C, H, W) images to (B, *measured) with noise, drawn from one generator an image."""
        spoil = self.spoil or noises.gaussian(self.noise)
        y = operator(clean)
        rows = [spoil(row, generator) for row, generator in zip(y, generators, strict=True)]
        keep = getattr(operator, "keep", None)
        noisy = torch.stack(rows)
        return noisy if keep is None else keep(noisy)

    def picture(self, operator: Operator, y: Tensor) -> Tensor:
        """(B, *measured) to (B, C, H, W) in [-1, 1]: what a supervised model is shown."""
        image = y if self.show is None else self.show(operator, y)
        return image.clamp(-1, 1)

    def degrade(self, clean: Tensor, generator: np.random.Generator) -> Tensor:
        """A clean (C, H, W) image in [-1, 1] as the degraded picture of the same shape."""
        if self.synthesise is not None:
            return self.synthesise(clean, generator).clamp(-1, 1)
        shape = tuple(clean.shape)
        seed = int(generator.integers(1 << 62)) if self.varies else 0
        operator = self.operator(shape, seed) if self.varies else _fixed(self.name, shape)
        assert operator is not None  # a task has one or the other
        return self.picture(operator, self.measure(operator, clean[None], [generator]))[0]


def find_task(name: str) -> Task:
    """The task called ``name``; UsageError with the nearest name if there is none."""
    if name in TASKS:
        return TASKS[name]
    for pattern, task in FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            return task(int(match[1]))
    raise UsageError(f"there is no task {name!r}; {nearest(name, list(TASKS))}")


@lru_cache(maxsize=16)
def _fixed(name: str, shape: Shape) -> Operator | None:
    return find_task(name).operator(shape, 0)


# What the rows of the table are made of.


def _denoise(level: int) -> Task:
    about = f"Gaussian noise of standard deviation {level} (of 255)"
    return Task(f"denoise-{level}", about, _identity, noise=2 * level / 255)


def _pool(factor: int) -> Task:
    about = f"super-resolution: means of {factor} x {factor} pixels"
    return Task(f"sr{factor}", about, lambda s, _: average_pooling(s, factor), show=_enlarged)


def _bicubic(factor: int) -> Task:
    about = f"super-resolution: bicubic reduction by {factor}"
    return Task(f"sr{factor}-bicubic", about, lambda s, _: bicubic(s, factor), show=_enlarged)


def _sr_blur(factor: int) -> Task:
    kernel = kernels.gaussian(7, 0.8 * factor)
    about = f"super-resolution: Gaussian blur, then one pixel in {factor} x {factor}"
    return Task(
        f"sr{factor}-blur", about, lambda s, _: BlurDecimation(s, kernel, factor), show=_enlarged
    )


def _random(percent: int) -> Task:
    if not 0 < percent < 100:
        raise UsageError(f"inpaint-random-{percent}: give a percentage from 1 to 99")
    about = f"{percent} % of the pixels are missing"
    return _mask(
        f"inpaint-random-{percent}",
        about,
        lambda h, w, g: masks.random(h, w, g, missing=percent / 100),
        varies=True,
    )


def _mask(
    name: str,
    about: str,
    mask: Callable[[int, int, np.random.Generator], Tensor],
    *,
    varies: bool = False,
) -> Task:
    def build(shape: Shape, generator: np.random.Generator) -> Operator:
        return Mask(shape, mask(shape[1], shape[2], generator))

    return Task(name, about, build, varies=varies)


LOST = 0.01
"""Below this singular value a blur is taken to have erased: the measurement holds nothing there."""


def _blur(name: str, about: str, rows: Tensor, columns: Tensor | None = None) -> Task:
    return Task(name, about, lambda s, _: separable_blur(s, rows, columns, floor=LOST))


def _motion(shape: Shape, generator: np.random.Generator) -> Operator:
    # A quarter of the image, as the published 61 pixels are of 256.
    size = min(max(min(shape[1:]) // 4, 3), 61) // 2 * 2 + 1
    return CircularBlur(shape, kernels.motion(size, generator), floor=LOST)


def _colorize(shape: Shape, _: np.random.Generator) -> Operator:
    if shape[0] != 3:
        raise UsageError("colorize needs images with three channels; these have one")
    return colorization(shape)


def _identity(shape: Shape, _: np.random.Generator) -> Operator:
    return Identity(shape)


def _enlarged(operator: Operator, y: Tensor) -> Tensor:
    return enlarge(y, operator.shape[1] // y.shape[2])


def _inverted(operator: Operator, y: Tensor) -> Tensor:
    assert isinstance(operator, LinearOperator)
    return operator.pinv(y)


def _grey(operator: Operator, y: Tensor) -> Tensor:
    return y.expand(-1, operator.shape[0], -1, -1)


FAMILIES: dict[str, Callable[[int], Task]] = {
    r"denoise-(\d{1,3})": _denoise,
    r"sr([2-9]|1\d)": _pool,
    r"sr([2-9]|1\d)-bicubic": _bicubic,
    r"sr([2-4])-blur": _sr_blur,
    r"inpaint-random-(\d\d)": _random,
}
"""Names with a number in them, which may be another."""

_ROWS = (
    _denoise(25),
    Task(
        "denoise-poisson",
        "photon noise, 30 photons in a white pixel",
        _identity,
        noise=noises.poisson_std(30),
        spoil=noises.poisson(30),
    ),
    Task(
        "denoise-speckle",
        "multiplicative noise of standard deviation 0.2",
        _identity,
        noise=noises.speckle_std(0.2),
        spoil=noises.speckle(0.2),
    ),
    _pool(2),
    _pool(4),
    _pool(8),
    _bicubic(2),
    _bicubic(4),
    _sr_blur(2),
    _mask(
        "inpaint-box", "inpainting: a square of half the side is missing", masks.box, varies=True
    ),
    _mask(
        "inpaint-random", "inpainting: half of the pixels are missing", masks.random, varies=True
    ),
    _mask("inpaint-freeform", "inpainting: brush strokes are missing", masks.freeform, varies=True),
    _mask(
        "inpaint-half", "inpainting: the right half is missing", lambda h, w, _: masks.half(h, w)
    ),
    _mask(
        "inpaint-nth",
        "inpainting: every other pixel of every other row is known",
        lambda h, w, _: masks.every_nth(h, w),
    ),
    _mask(
        "outpaint",
        "outpainting: only the middle is known",
        lambda h, w, _: masks.outpainting(h, w),
    ),
    _blur("deblur-gauss", "Gaussian blur of 1.6 pixels", kernels.gaussian_line(9, 1.6)),
    _blur("deblur-uniform", "box blur of 5 x 5 pixels", torch.full((5,), 0.2)),
    _blur(
        "deblur-aniso",
        "Gaussian blur of 3 pixels across, 1 down",
        kernels.gaussian_line(5, 1.0),
        kernels.gaussian_line(9, 3.0),
    ),
    Task("deblur-motion", "blur of a shaking camera", _motion, varies=True),
    Task("colorize", "grey images become coloured", _colorize, show=_grey),
)

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
"""Name to task; `find_task` knows other numbers too."""
