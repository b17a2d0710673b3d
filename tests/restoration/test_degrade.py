"""Synthesis of degradations: laws of noise, weather, light, cameras, on images of any size."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffit import draws
from diffit.data.builtin import open_builtin
from diffit.restoration.degrade import camera, fields, light, noise, overlay, weather
from diffit.restoration.learned_tasks import LEARNED
from diffit.restoration.operators import ReflectBlur

SHAPES = ((3, 8, 8), (1, 8, 8), (3, 33, 20), (3, 5, 7))


def stream(seed: int) -> np.random.Generator:
    return draws.generator(seed, 0, "degrade")


def photograph(count: int = 1) -> Tensor:
    patches = open_builtin("patches")
    images = np.concatenate([patches[i].image for i in range(count)], axis=2)
    return torch.from_numpy(images).float() / 127.5 - 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("task", LEARNED, ids=lambda task: task.name)
def test_images_of_every_size_are_degraded(task, shape: tuple[int, int, int]) -> None:
    clean = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept = clean.clone()
    degraded = task.degrade(clean, stream(0))
    assert degraded.shape == shape
    assert degraded.dtype == torch.float32
    assert degraded.abs().max() <= 1
    assert torch.equal(clean, kept)
    assert not torch.equal(degraded, task.degrade(clean, stream(1)))


@pytest.mark.parametrize(
    ("law", "variance"),
    [
        (noise.gaussian(0.1), lambda light: 0.01 + 0 * light),
        (noise.poisson(30), lambda light: 4 * light / 30),
        (noise.speckle(0.2), lambda light: 0.04 * (2 * light) ** 2),
    ],
    ids=["gaussian", "poisson", "speckle"],
)
def test_noise_has_the_mean_and_variance_of_its_law(law, variance) -> None:
    for level in (0.1, 0.5, 0.9):
        image = torch.full((3, 100, 100), 2 * level - 1)
        noisy = law(image, stream(0))
        assert noisy.mean() == pytest.approx(2 * level - 1, abs=0.01)
        assert noisy.var() == pytest.approx(float(variance(level)), rel=0.04)


def test_no_noise_changes_nothing() -> None:
    image = photograph()
    assert torch.equal(noise.gaussian(0)(image, stream(0)), image)


def test_noise_is_the_same_in_every_precision() -> None:
    image = photograph()
    for law in (noise.gaussian(0.1), noise.poisson(30), noise.speckle(0.2)):
        double = law(image.double(), stream(0))
        assert torch.allclose(double.float(), law(image, stream(0)), atol=1e-6)


def test_blur_of_a_field_is_that_of_an_operator_inside() -> None:
    kernel = torch.arange(15.0, dtype=torch.float64).reshape(3, 5)
    kernel /= kernel.sum()
    image = photograph().double()
    expected = ReflectBlur((3, 32, 32), kernel)(image[None])[0]
    own = fields.blurred(image, kernel)
    assert torch.allclose(own[:, 1:-1, 2:-2], expected[:, 1:-1, 2:-2])


def test_blur_keeps_a_flat_image_and_takes_kernels_wider_than_it() -> None:
    flat = torch.full((3, 4, 5), 0.3)
    assert torch.allclose(fields.softened(flat, 6.0), flat, atol=1e-5)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2])
def test_a_sinc_filter_passes_low_frequencies_alone(cutoff: float) -> None:
    spectrum = torch.fft.fft2(camera.sinc(41, cutoff), s=(256, 256)).abs()
    frequency = torch.fft.fftfreq(256, dtype=torch.float64) * 2 * math.pi
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    assert (spectrum[radius < 0.6 * cutoff] - 1).abs().max() < 0.2
    assert spectrum[radius > 1.4 * cutoff].max() < 0.2


def test_a_real_camera_loses_detail_and_keeps_colours() -> None:
    image = photograph(4)
    degraded = camera.real_world(image, stream(0))
    assert (degraded.mean((1, 2)) - image.mean((1, 2))).abs().max() < 0.2
    assert degraded.diff(dim=2).abs().mean() < 0.7 * image.diff(dim=2).abs().mean()


@pytest.mark.parametrize(
    "make", [weather.rain, weather.snow, weather.haze], ids=lambda f: f.__name__
)
def test_weather_brightens_dark_images(make) -> None:
    for seed in range(5):
        dark = torch.full((3, 48, 48), -0.8)
        assert make(dark, stream(seed)).min() >= -0.8001
        assert make(dark, stream(seed)).mean() > -0.8


def test_haze_hides_what_is_far_and_spares_what_is_near() -> None:
    stripes = torch.ones(3, 48, 48)
    stripes[:, :, ::2] = -1
    contrast = weather.haze(stripes, stream(0)).diff(dim=2).abs().mean((0, 2)) / 2
    assert contrast[:12].mean() < contrast[-12:].mean() < 1


def test_drops_leave_what_is_beside_them() -> None:
    image = photograph(2)
    same = ((weather.raindrops(image, stream(0)) - image).abs() < 1e-6).all(0)
    assert 0.3 < same.float().mean() < 0.99


def test_low_light_is_dark_and_noisy() -> None:
    image = photograph(2)
    dark = light.low_light(image, stream(0))
    assert dark.mean() < image.mean() - 0.3
    assert len(dark.unique()) > 100


def test_a_shadow_darkens_a_part_and_leaves_the_rest() -> None:
    image = photograph(2)
    shaded = light.shadow(image, stream(0))
    assert (shaded <= image + 1e-6).all()
    dark = ((image - shaded) > 0.02).any(0).float().mean()
    assert 0.02 < dark < 0.7


def test_a_watermark_writes_its_word_upright() -> None:
    points = overlay.word("LT")
    assert points.shape == (13, 18)
    assert points[6, :5].tolist() == [1] * 5
    assert points[:7, 0].tolist() == [1] * 7
    assert points[0, 6:11].tolist() == [1] * 5
    assert points[7:].sum() == 0


def test_a_watermark_covers_a_part_with_one_colour() -> None:
    grey = torch.zeros(3, 64, 64)
    marked = overlay.watermark(grey, stream(0))
    covered = (marked != 0).float().mean()
    assert 0.05 < covered < 0.7
    assert (marked >= 0).all() or (marked <= 0).all()


def test_clouds_cover_the_whole_range() -> None:
    field = fields.clouds(40, 23, stream(0))
    assert field.shape == (40, 23)
    assert field.min() == 0
    assert field.max() == 1
    assert field.diff(dim=0).abs().max() < 0.4
