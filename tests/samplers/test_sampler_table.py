"""The table of samplers: every row runs as it says, on every formulation."""

import inspect

import pytest
import torch

from diffit.diffusion.denoiser import Denoiser, Estimate
from diffit.diffusion.formulation import (
    DDPMConfig,
    EDMConfig,
    FlowConfig,
    SubVPConfig,
    VEConfig,
    VPConfig,
    build_formulation,
)
from diffit.diffusion.schedule import LEVELS, levels
from diffit.errors import UsageError
from diffit.samplers import SAMPLERS, ImageNoise, find_sampler
from oracle import Gaussian

ROWS = [
    build_formulation(config)
    for config in (
        DDPMConfig(learned_variance=False),
        VPConfig(),
        SubVPConfig(),
        VEConfig(),
        EDMConfig(),
        FlowConfig(),
    )
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_the_data_from_every_start(name, row):
    sampler, data, calls = SAMPLERS[name], Gaussian(), []
    # Langevin steps alone follow the levels only where these lie close.
    steps = 400 if name == "ncsn" else 60
    sigmas = levels(sampler.levels(row), steps, row)
    assert sampler.levels(row) in LEVELS
    noise = ImageNoise(range(64), (1, 8, 8))

    def denoise(x, sigma):
        calls.append(sigma)
        clean = data(x, sigma)
        return Estimate(clean, torch.zeros_like(x)) if sampler.wants_estimate else clean

    end = sampler.run(denoise, row.prior_std(sigmas[0]) * noise(), sigmas, noise=noise)
    assert len(calls) == sampler.evaluations(steps)
    # 4096 pixels: the standard error of the mean is 0.011; sixty steps leave some bias.
    assert end.mean().item() == pytest.approx(data.mean, abs=0.045)
    assert end.std().item() == pytest.approx(data.std, rel=0.2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_options_are_keywords_of_the_function(name):
    sampler = SAMPLERS[name]
    assert set(sampler.options) <= set(inspect.signature(sampler.run).parameters)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "ancestral-learned"])
def test_the_state_keeps_its_precision(name):
    row = build_formulation(EDMConfig())
    sigmas = levels("karras", 12, row)
    ends = []
    for dtype in (torch.float64, torch.float32):
        noise = ImageNoise(range(4), (1, 4, 4), dtype=dtype)
        ends.append(SAMPLERS[name].run(Gaussian(), sigmas[0] * noise(), sigmas, noise=noise))
        assert ends[-1].dtype == dtype
    # The corrector's step divides by the score, for smooth data a difference of a few digits.
    atol = 5e-3 if name == "pc" else 2e-5
    torch.testing.assert_close(ends[1].double(), ends[0], atol=atol, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_gpu_draws_the_same_images(name):
    class Tanh(torch.nn.Module):
        def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
            noise = 0.9 * torch.tanh(x) + 0.01 * time[:, None, None, None].cos()
            return torch.cat([noise, torch.tanh(x)], 1)

    row = build_formulation(DDPMConfig())
    sampler, ends = SAMPLERS[name], []
    for device in ("cpu", "cuda"):
        denoiser = Denoiser(Tanh(), row)
        sigmas = levels(sampler.levels(row), 12, row)
        noise = ImageNoise(range(4), (1, 4, 4), device)
        x = row.prior_std(sigmas[0]) * noise()
        call = denoiser.estimate if sampler.wants_estimate else denoiser
        ends.append(sampler.run(call, x, sigmas, noise=noise).cpu())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [n for n, s in SAMPLERS.items() if not s.stochastic])
def test_deterministic_samplers_draw_nothing(name):
    def no_noise():
        raise AssertionError("this sampler is deterministic")

    sigmas = levels("karras", 5, build_formulation(EDMConfig()))
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    SAMPLERS[name].run(Gaussian(), x, sigmas, noise=no_noise)


def test_a_denoiser_is_what_samplers_take():
    class Zero(torch.nn.Module):
        def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
            return torch.zeros_like(x)

    row = build_formulation(EDMConfig())
    sigmas = levels("karras", 60, row)
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64) * sigmas[0]
    end = SAMPLERS["heun"].run(Denoiser(Zero(), row), x, sigmas, noise=None)
    # The network says nothing, so the data are taken for N(0, sigma_data^2).
    assert end.max().item() == pytest.approx(0.5, rel=0.02)


def test_refusals():
    with pytest.raises(UsageError, match="no sampler 'huen'; did you mean 'heun'"):
        find_sampler("huen")
    with pytest.raises(UsageError, match="sampler 'euler' has no option 'eta'; it knows none"):
        find_sampler("euler").check_options("euler", ["eta"])
    with pytest.raises(UsageError, match="it knows churn, churn_min, churn_max, churn_noise"):
        find_sampler("heun").check_options("heun", ["churn", "eta"])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_may_end_above_zero(name):
    sampler, data, calls, row = SAMPLERS[name], Gaussian(), [], ROWS[1]
    steps = 400 if name == "ncsn" else 40
    sigmas = levels("uniform", steps, row, low=0.1, to_zero=False)
    assert len(sigmas) == steps + 1
    assert sigmas[-1].item() == pytest.approx(0.1)
    noise = ImageNoise(range(64), (1, 8, 8))

    def denoise(x, sigma):
        calls.append(sigma)
        clean = data(x, sigma)
        return Estimate(clean, torch.zeros_like(x)) if sampler.wants_estimate else clean

    end = sampler.run(denoise, row.prior_std(sigmas[0]) * noise(), sigmas, noise=noise)
    assert len(calls) == sampler.evaluations(steps, to_zero=False)
    # What is left of the noise is part of the variance.
    assert end.std().item() == pytest.approx((data.std**2 + 0.1**2) ** 0.5, rel=0.2)
