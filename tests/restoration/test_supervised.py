"""Restoration by models trained for it, against exact denoisers of Gaussian images."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from diffit.codecs import Pixels
from diffit.diffusion.bridge import InDIConfig, IRSDEConfig, ResShiftConfig
from diffit.diffusion.formulation import EDMConfig, FlowConfig, VPConfig, build_formulation
from diffit.errors import UsageError
from diffit.restoration.supervised import (
    encode_pixels,
    is_supervised,
    restore_supervised,
    usual_walk,
)

ROWS = {
    "edm": EDMConfig(),
    "flow": FlowConfig(),
    "vp": VPConfig(),
    "ir-sde": IRSDEConfig(noise=0.4),
    "ir-sde-fine": IRSDEConfig(noise=0.4, steps=1000),
    "resshift-fine": ResShiftConfig(steps=1000),
    "resshift": ResShiftConfig(),
    "indi": InDIConfig(),
}
SHAPE = (3, 32, 32)
IMAGE = torch.full((2, *SHAPE), 0.4)
STD = 0.15


class Known:
    """The exact denoiser where, given the degraded image, a clean one is N(image / 2, STD^2)."""

    def __init__(self, name):
        self.formulation = build_formulation(ROWS[name])

    def __call__(self, x, sigma, label=None, image=None):
        mean, signal, noise = image / 2, 1.0, float(sigma)
        if self.formulation.name == "resshift":  # x_t - eta image = (1 - eta) clean + noise
            eta = float(self.formulation.bridge.eta(sigma))
            x, signal, noise = x - eta * image, 1 - eta, 2 * eta**0.5
        elif self.formulation.name == "indi":  # at t = 1 nothing but the degraded image is seen
            return mean.to(x)
        gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
        return mean + gain * (x - signal * mean)


class Sure(Known):
    """A denoiser that knows the clean image."""

    clean = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, *SHAPE)

    def __call__(self, x, sigma, label=None, image=None):
        return self.clean.to(x)


def noises(dtype=torch.float64):
    numbers = count()

    def noise():
        torch.manual_seed(next(numbers))
        return torch.randn(2, *SHAPE, dtype=dtype)

    return noise


def config_of(name):
    network = SimpleNamespace(shape=SHAPE)
    return SimpleNamespace(network=network, formulation=ROWS[name], task="sr2")


def restore(denoiser, name, image=IMAGE, **options):
    return restore_supervised(denoiser, Pixels(), config_of(name), image, noise=noises(), **options)


@pytest.mark.parametrize(
    ("name", "options", "nfe"),
    [
        ("edm", {}, 35),
        ("edm", {"sampler": "ddim", "steps": 5}, 5),
        ("flow", {"sampler": "euler", "steps": 4}, 4),
        ("ir-sde", {}, 100),
        ("ir-sde", {"steps": 10}, 10),
        ("resshift", {}, 15),
        ("resshift", {"steps": 4}, 4),
        ("indi", {}, 20),
        ("indi", {"steps": 1}, 1),
    ],
)
def test_a_denoiser_that_knows_the_clean_image_restores_it(name, options, nfe):
    answer = restore(Sure(name), name, **options)
    torch.testing.assert_close(answer.x, Sure.clean.double(), atol=1e-5, rtol=0)
    assert (answer.nfe, answer.consistency) == (nfe, None)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("edm", {"steps": 32}, 0.03),
        # DDPM's posterior steps leave out how unsure the estimate is: exact for many steps alone.
        ("ir-sde-fine", {}, 0.02),
        ("resshift-fine", {}, 0.08),
        ("ir-sde", {"sampler": "sde"}, 0.04),
        ("ir-sde", {"sampler": "ode"}, 0.04),
    ],
)
def test_restored_images_are_distributed_as_the_clean_ones_given_the_degraded(
    name, options, tolerance
):
    x = restore(Known(name), name, **options).x
    assert float(x.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, rel=tolerance)


def test_indi_without_noise_gives_the_expected_clean_image():
    x = restore(Known("indi"), "indi", steps=7).x
    torch.testing.assert_close(x, torch.full_like(x, 0.2))


@pytest.mark.parametrize("name", ROWS)
def test_the_precision_is_that_of_the_noise(name):
    noise = noises(torch.float32)
    answer = restore_supervised(Sure(name), Pixels(), config_of(name), IMAGE, noise=noise, steps=3)
    assert answer.x.dtype == torch.float32


def test_every_method_walks_as_its_authors_do():
    walks = {name: usual_walk(build_formulation(config)) for name, config in ROWS.items()}
    assert walks["ir-sde"] == ("ancestral", 100)
    assert walks["resshift"].steps == 15
    assert walks["edm"] == ("heun", 18)


def test_a_model_is_supervised_if_it_has_a_task():
    assert is_supervised(config_of("edm"))
    assert not is_supervised(SimpleNamespace(task=""))


def test_pixels_need_no_encoding():
    assert encode_pixels(Pixels(), IMAGE) is IMAGE


@pytest.mark.parametrize(
    ("name", "image", "options", "message"),
    [
        ("edm", IMAGE[:, :1], {}, "images are 1 x 32 x 32, but this model restores images of 3 x"),
        ("edm", IMAGE[0], {}, "images are 32 x 32, but this model"),
        ("edm", IMAGE * torch.nan, {}, "holds values that are not finite"),
        ("edm", IMAGE, {"sampler": "heum"}, "there is no sampler 'heum'"),
        ("edm", IMAGE, {"sampler": "sde"}, "there is no sampler 'sde'"),
        ("edm", IMAGE, {"sampler": "ancestral-learned"}, "needs a learned variance"),
        ("edm", IMAGE, {"steps": 0}, "steps is 0"),
        ("resshift", IMAGE, {"steps": 16}, "steps is 16; this ResShift has 1 to 15"),
        ("indi", IMAGE, {"steps": 0}, "steps is 0; InDI takes at least 1"),
        ("ir-sde", IMAGE, {"sampler": "ode", "steps": 9}, "takes all 100 steps, not 9"),
    ],
)
def test_what_cannot_be_restored_is_refused_in_one_sentence(name, image, options, message):
    with pytest.raises(UsageError, match=message):
        restore(Sure(name), name, image, **options)
