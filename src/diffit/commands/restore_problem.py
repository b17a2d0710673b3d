"""What `diffit restore` is given: images, masks and kernels as files, made into problems."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffit import draws
from diffit.data.images import read_file, read_image
from diffit.errors import DataError, UsageError
from diffit.restoration.kernels import read_kernel
from diffit.restoration.masks import read_mask
from diffit.restoration.measured_tasks import LOST
from diffit.restoration.operators import (
    BlurDecimation,
    CircularBlur,
    Mask,
    Operator,
    check_measurement,
)
from diffit.restoration.supervised import PAIRS
from diffit.restoration.task import Task
from diffit.restoration.tasks import find_task
from diffit.restoring import factor_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".npy")
MAX_SIDE = 4096
"""Larger images are refused: an operator holds several float64 numbers for each value."""


class Problem(NamedTuple):
    """One image to restore.

    Attributes:
        operator: what was measured; None for what a model has learned to undo.
        y: (1, *measured) measurement; for a learned task the degraded image, (1, C, H, W).
        shown: (C, H, W) in [-1, 1], the measurement as a picture.
        clean: (1, C, H, W) the image as it was, if it was degraded here.
        sigma_y: standard deviation of the noise of y, in units of pixels in [-1, 1].
    """

    operator: Operator | None
    y: Tensor
    shown: Tensor
    clean: Tensor | None
    sigma_y: float


@dataclass(frozen=True)
class Setup:
    """How images become problems.

    Attributes:
        task: with its mask, kernel and noise.
        degrade: images are clean; otherwise they are measurements.
        seed: of masks, kernels and noise, and of where there are several images their place.
        shape: (C, H, W) that the model works on, in pixels.
        learned: the model has learned to undo the task; there is no operator.
    """

    task: Task
    degrade: bool
    seed: int
    shape: tuple[int, int, int]
    learned: bool = False


def find_inputs(path: Path) -> list[Path]:
    """The image or measurement at a path, or those directly in a folder, by name."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        found = [p for p in found if p.is_file() and not p.name.startswith(".")]
        if not found:
            raise UsageError(f"{path} holds no images; name an image or a folder of images")
        return found
    if not path.exists():
        raise UsageError(f"{path} does not exist; name an image or a folder of images")
    return [path]


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each file, without its suffix; UsageError if two would be one."""
    names = [path.stem for path in paths]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UsageError(f"two inputs are called {name!r}; rename one of them")
    return names


def choose_task(name: str, *, mask: Path | None, kernel: Path | None, noise: float | None) -> Task:
    """The task by its name, or by the file that describes it; with other noise if given.

    ``noise`` is a standard deviation for pixels in [0, 1].
    """
    if mask and kernel:
        raise UsageError("--mask and --kernel are both given; keep the one that is known")
    task = find_task(name) if name else None
    if mask:
        if task is not None and not task.name.startswith(("inpaint", "outpaint")):
            raise UsageError(f"--mask is for inpainting, the task is {task.name}; leave one out")
        task = _masked(task.name if task else "inpaint", mask)
    elif kernel:
        task = _blurred(task, read_kernel(kernel))
    if task is None:
        raise UsageError("give --task, such as sr4 or deblur-gauss, or a --mask, or a --kernel")
    return task if noise is None else replace(task, noise=2 * noise, spoil=None)


def trained_task(trained: str, asked: str, *, degrade: bool) -> Task:
    """The task that a model was trained for; UsageError if another one is asked for."""
    if asked and asked != trained:
        raise UsageError(
            f"this model was trained to restore {trained}, not {asked}; leave --task out, or take "
            "another model"
        )
    if trained != PAIRS:
        return find_task(trained)
    if degrade:
        raise UsageError(
            "this model was trained on pairs, and nothing says how those were degraded; give a "
            "degraded image, without --degrade"
        )
    return Task(PAIRS, "as in the pairs that it learned from")


def open_problem(setup: Setup, path: Path, place: int) -> Problem:
    """Read one input; DataError or UsageError, in one sentence, if it does not fit."""
    if setup.degrade or setup.learned:
        image = _clean(setup, path)
        return degraded(setup, image, place) if setup.degrade else _as_is(image)
    # What is random about other operators, such as those of sensing, follows from the seed again.
    if setup.task.varies and setup.task.name.startswith(("inpaint", "outpaint", "deblur")):
        given = "--kernel" if "blur" in setup.task.name else "--mask"
        raise UsageError(
            f"{setup.task.name} differs from image to image: say with {given} what it was, or add "
            "--degrade to degrade a clean image"
        )
    y = _measurement(setup, path)
    return _measured(setup, y, place)


def degraded(setup: Setup, image: Tensor, place: int) -> Problem:
    """A clean (C, H, W) image in [-1, 1] as a problem: degraded by the task, the truth beside."""
    task, clean = setup.task, image[None].double()
    generator = draws.generator(setup.seed, place, "measurement")
    if task.build is None or setup.learned:
        picture = task.degrade(image, generator)
        return Problem(None, picture[None], picture, clean, task.noise)
    operator = _operator(setup, tuple(image.shape), place)
    y = task.measure(operator, clean, [generator])
    return Problem(operator, y, task.picture(operator, y)[0], clean, task.noise)


def _as_is(image: Tensor) -> Problem:
    return Problem(None, image[None], image, None, 0.0)


def _measured(setup: Setup, y: Tensor, place: int) -> Problem:
    operator = _operator(setup, _image_shape(setup, y), place)
    if len(operator.measured) == 3 and y.shape[0] == 3 and operator.measured[0] == 1:
        y = _grey(y)
    check_measurement(y[None], operator)
    keep = getattr(operator, "keep", None)
    y = (y if keep is None else keep(y[None])[0])[None].double()
    return Problem(operator, y, setup.task.picture(operator, y)[0], None, setup.task.noise)


def _operator(setup: Setup, shape: tuple[int, ...], place: int) -> Operator:
    operator = setup.task.operator(shape, setup.seed + place)
    if operator is None:
        raise UsageError(
            f"{setup.task.name} has no operator: only a model that was trained for it can undo it"
        )
    return operator


def _image_shape(setup: Setup, y: Tensor) -> tuple[int, ...]:
    """(C, H, W) of the image that was measured: of a picture its own size times the factor."""
    if y.ndim != 3 or y.shape[0] not in (1, setup.shape[0]):
        return setup.shape
    factor = factor_of(setup.task)
    return setup.shape[0], y.shape[1] * factor, y.shape[2] * factor


def _clean(setup: Setup, path: Path) -> Tensor:
    if path.suffix.lower() == ".npy":
        raise UsageError(f"{path} is an array; a clean or degraded image is an image file")
    return to_pm1(_bounded(read_image(path, channels=setup.shape[0]), path))


def _measurement(setup: Setup, path: Path) -> Tensor:
    """A measurement as it is stored: a picture, or any array."""
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(_read_array(path).astype(np.float64))
    image = _bounded(read_image(path), path)
    if len(image) == 1 and setup.shape[0] == 3 and setup.task.name != "colorize":
        image = image.repeat(3, axis=0)
    if len(image) == 3 and setup.shape[0] == 1:
        image = read_image(path, channels=1)
    return to_pm1(image)


def _bounded(image: np.ndarray, path: Path) -> np.ndarray:
    if max(image.shape[1:]) > MAX_SIDE:
        raise DataError(f"{path} has a side of more than {MAX_SIDE} pixels; cut or reduce it")
    return image


def _read_array(path: Path) -> np.ndarray:
    """Finite real numbers of a .npy file; nothing in it is ever executed."""
    try:
        values = np.load(io.BytesIO(read_file(path)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is no .npy array that can be read: {_first_line(error)}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif" or not values.size:
        raise DataError(f"{path} holds no real numbers; save a float array with numpy.save")
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds values that are not finite; replace them, or mask them out")
    return values


def to_pm1(image: np.ndarray) -> Tensor:
    """(C, H, W) uint8 to float64 in [-1, 1]."""
    return torch.from_numpy(image.astype(np.float64)) / 127.5 - 1


def to_uint8(image: Tensor) -> np.ndarray:
    """(..., H, W) in [-1, 1] to uint8, rounded to the nearest."""
    levels: np.ndarray = ((image.double() + 1) * 127.5).round().clamp(0, 255).cpu().numpy()
    return levels.astype(np.uint8)


def _grey(image: Tensor) -> Tensor:
    if float((image - image.mean(0)).abs().max()) > 1e-6:
        raise DataError("this task starts from a grey image; the one given has colour")
    return image[:1]


def _masked(name: str, path: Path) -> Task:
    def build(shape: tuple[int, ...], _: np.random.Generator) -> Operator:
        return Mask(shape, read_mask(path, shape[1], shape[2]))

    return Task(name, "inpainting with a given mask", build)


def _blurred(task: Task | None, kernel: Tensor) -> Task:
    def build(shape: tuple[int, ...], _: np.random.Generator) -> Operator:
        return CircularBlur(shape, kernel, floor=LOST)

    if task is None:
        return Task("deblur", "a given blur kernel", build)
    if task.name.startswith("deblur"):
        return replace(task, build=build, varies=False)
    if re.fullmatch(r"sr\d+-blur", task.name):
        factor = factor_of(task)
        return replace(task, build=lambda shape, _: BlurDecimation(shape, kernel, factor))
    raise UsageError(f"--kernel is for deblurring, the task is {task.name}; leave one out")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
