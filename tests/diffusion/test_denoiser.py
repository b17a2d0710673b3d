"""The denoiser: scalings, precisions, what it passes on and what it refuses."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import FIXTURES
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import DDPMConfig, EDMConfig, build_formulation

EDM = build_formulation(EDMConfig())
DDPM = build_formulation(DDPMConfig())
PLAIN = build_formulation(DDPMConfig(learned_variance=False))


class Spy(nn.Module):
    """Remembers how it was called."""

    def __init__(self, *, double=False, dtype=torch.float32, classes=10):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.config = SimpleNamespace(classes=classes)
        self.double_channels = double

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        self.seen = SimpleNamespace(
            x=x, time=time, label=label, image=image, augment=augment, keys=keys
        )
        return torch.cat([x, x.tanh()], 1) if self.double_channels else x * self.weight


class Recorded(nn.Module):
    """The analytic network of the recorded EDM runs."""

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        return torch.sin(x + time[:, None, None, None])


def test_preconditioned_denoiser_is_the_recorded_one():
    recorded = load_file(FIXTURES / "edm_sampler.safetensors")
    denoiser = Denoiser(Recorded(), EDM)
    clean = denoiser(recorded["denoise.x"], recorded["precond.sigma"])
    torch.testing.assert_close(clean, recorded["denoise.output"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_level_for_all_equals_one_for_each(dtype):
    denoiser = Denoiser(Spy(), EDM)
    x = torch.randn(3, 2, 4, 4, dtype=dtype)
    single = denoiser(x, torch.tensor(0.7))
    each = denoiser(x, torch.full((3,), 0.7))
    assert torch.equal(single, each)
    assert single.dtype == dtype


def test_network_runs_in_its_precision_and_time_in_float32():
    network = Spy(dtype=torch.bfloat16)
    sigmas = PLAIN.levels
    x = torch.randn(1000, 1, 2, 2, dtype=torch.float64)
    clean = Denoiser(network, PLAIN)(x, sigmas)
    assert network.seen.x.dtype == torch.bfloat16
    assert network.seen.time.dtype == torch.float32
    assert len(network.seen.time.unique()) == 1000
    assert clean.dtype == torch.float64


def test_conditions_reach_the_network():
    network = Spy()
    label, keys = torch.tensor([1, 2]), torch.tensor([5, 6])
    image, augment = torch.zeros(2, 1, 4, 4, dtype=torch.float64), torch.ones(2, 9)
    x = torch.randn(2, 1, 4, 4)
    Denoiser(network, EDM)(x, torch.tensor(1.0), label, image, augment=augment, keys=keys)
    assert network.seen.label is label
    assert network.seen.keys is keys
    assert network.seen.augment is augment
    assert network.seen.image.dtype == torch.float32


def test_estimate_adds_where_the_variance_lies():
    x = torch.randn(2, 3, 4, 4)
    sigma = DDPM.levels[[10, 900]]
    denoiser = Denoiser(Spy(double=True), DDPM)
    clean, fraction = denoiser.estimate(x, sigma)
    assert torch.equal(clean, denoiser(x, sigma))
    inp = (1 + sigma**2).rsqrt().float().reshape(2, 1, 1, 1)
    torch.testing.assert_close(fraction, ((inp * x).tanh() + 1) / 2)
    assert torch.equal(denoiser.raw(x, sigma)[:, 3:], (inp * x).tanh())


@pytest.mark.parametrize("level", [1e-3, 1.0, 1e3])
def test_float32_state_agrees_with_float64(level):
    denoiser = Denoiser(Recorded(), EDM)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64) * max(level, 1)
    sigma = torch.tensor(level, dtype=torch.float64)
    torch.testing.assert_close(
        denoiser(x.float(), sigma), denoiser(x, sigma).float(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("formulation", [EDM, PLAIN], ids=lambda f: f.name)
def test_copies_and_pickles_answer_alike(formulation):
    denoiser = Denoiser(Recorded(), formulation)
    x, sigma = torch.randn(2, 1, 4, 4), torch.tensor(0.5)
    for other in (copy.deepcopy(denoiser), pickle.loads(pickle.dumps(denoiser))):  # noqa: S301
        assert torch.equal(other(x, sigma), denoiser(x, sigma))


def test_refusals():
    x, sigma = torch.randn(2, 3, 4, 4), torch.tensor(1.0)
    with pytest.raises(ValueError, match="trained without classes; call it without a label"):
        Denoiser(Spy(classes=0), EDM)(x, sigma, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="has learned no variance; take the sampler 'ancestral'"):
        Denoiser(Spy(), EDM).estimate(x, sigma)
    with pytest.raises(ValueError, match=r"answers with 3 channels .* expected 6"):
        Denoiser(Spy(), DDPM)(x, sigma)
    with pytest.raises(ValueError, match=r"answers with 6 channels .* expected 3"):
        Denoiser(Spy(double=True), EDM)(x, sigma)
    with pytest.raises(ValueError, match="sigma is 0"):
        Denoiser(Spy(), EDM)(x, torch.tensor(0.0))
