"""The table of tasks: each degrades images, the same way for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffit import draws
from diffit.data.builtin import open_builtin
from diffit.errors import UsageError
from diffit.restoration.operators import is_linear
from diffit.restoration.tasks import TASKS, find_task

OTHER_NUMBERS = ("denoise-50", "sr3", "sr16", "sr3-bicubic", "sr4-blur", "inpaint-random-90")


def photographs(count: int) -> Tensor:
    patches = open_builtin("patches")
    images = np.stack([patches[i].image for i in range(count)])
    return torch.from_numpy(images).float() / 127.5 - 1


def stream(seed: int, number: int = 0) -> np.random.Generator:
    return draws.generator(seed, number, "degrade")


def crop(image: Tensor, task: str) -> Tensor:
    """Sides that the task's factor divides."""
    return image[:, :24, :30] if task.startswith("sr3") else image[:, :32, :16]


@pytest.mark.parametrize("name", [*TASKS, *OTHER_NUMBERS])
def test_every_task_degrades_a_photograph_and_repeats_itself(name: str) -> None:
    task = find_task(name)
    clean = crop(photographs(1)[0], name)
    degraded = task.degrade(clean, stream(0))
    assert task.name == name
    assert degraded.shape == clean.shape
    assert degraded.dtype == clean.dtype
    assert degraded.isfinite().all()
    assert degraded.abs().max() <= 1
    assert not torch.equal(degraded, clean)
    assert torch.equal(degraded, task.degrade(clean, stream(0)))


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.varies])
def test_what_is_random_about_an_operator_follows_from_the_seed(name: str) -> None:
    task, clean = TASKS[name], photographs(1)
    y = [task.operator((3, 32, 32), seed)(clean) for seed in (1, 1, 2)]
    assert torch.equal(y[0], y[1])
    assert not torch.equal(y[0], y[2])
    assert not torch.equal(task.degrade(clean[0], stream(0)), task.degrade(clean[0], stream(1)))


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.build])
def test_a_measurement_makes_a_picture_of_the_image_s_shape(name: str) -> None:
    task, clean = TASKS[name], photographs(2)
    operator = task.operator((3, 32, 32), 0)
    y = task.measure(operator, clean, [stream(0, 0), stream(0, 1)])
    assert y.shape == (2, *operator.measured)
    picture = task.picture(operator, y)
    assert picture.shape == clean.shape
    assert picture.abs().max() <= 1
    alone = task.measure(operator, clean[1:], [stream(0, 1)])
    assert torch.allclose(y[1:], alone, atol=1e-5)
    if is_linear(operator) and task.noise == 0:
        assert torch.allclose(operator(operator.pinv(y)), y, atol=1e-3)


@pytest.mark.parametrize("name", ["denoise-25", "denoise-poisson", "denoise-speckle"])
def test_the_noise_of_a_task_is_as_strong_as_it_says(name: str) -> None:
    task = TASKS[name]
    grey = torch.zeros(3, 64, 64)
    noise = task.degrade(grey, stream(0))
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(task.noise, rel=0.03)


def test_noise_stays_out_of_the_holes() -> None:
    task = TASKS["inpaint-box"]
    operator = task.operator((3, 32, 32), 0)
    y = replace(task, noise=0.5).measure(operator, photographs(1), [stream(0)])
    assert (y[0][operator.mask == 0] == 0).all()


def test_an_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="there is no task 'sr4-bicubik'; did you mean 'sr4-bicu"):
        find_task("sr4-bicubik")


def test_colourisation_of_grey_images_is_refused() -> None:
    with pytest.raises(UsageError, match="colorize needs images with three channels"):
        TASKS["colorize"].degrade(torch.zeros(1, 8, 8), stream(0))


def test_a_percentage_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="give a percentage from 1 to 99"):
        find_task("inpaint-random-00")
