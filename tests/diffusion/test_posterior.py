"""The posterior's variance and the likelihoods against integrals and recorded values."""

import math

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.diffusion.posterior import gaussian_kl, log_variance, log_variance_bounds, pixel_nll

LEVELS = build_formulation(DDPMConfig()).levels


def test_bounds_are_the_recorded_variances_in_this_coordinate():
    recorded = load_file(FIXTURES / "gaussian_diffusion.safetensors")
    lower = torch.cat([LEVELS.new_zeros(1), LEVELS[:-1]])
    low, high = log_variance_bounds(LEVELS, lower, LEVELS.roll(-1))
    signal = 2 * recorded["schedule.alphas_cumprod_prev"].sqrt().log()
    expected = recorded["schedule.posterior_log_variance_clipped"]
    torch.testing.assert_close(low + signal, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        high + signal, recorded["schedule.betas"].log(), rtol=1e-9, atol=1e-9
    )


def test_log_variance_runs_between_its_bounds():
    low, high = torch.tensor(-3.0), torch.tensor(-1.0)
    assert log_variance(torch.tensor([0.0, 0.25, 1.0]), low, high).tolist() == [-3, -2.5, -1]


def test_kl_is_its_integral():
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    p = torch.distributions.Normal(0.4, math.exp(0.1))
    q = torch.distributions.Normal(-0.5, math.exp(0.35))
    integral = torch.trapezoid(p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)), x)
    kl = gaussian_kl(torch.tensor(0.9), torch.tensor(0.2), torch.tensor(0.7))
    assert kl.item() == pytest.approx(integral.item(), rel=1e-6)


def test_pixel_likelihoods_add_up_to_one():
    pixels = (torch.arange(256, dtype=torch.float64) / 127.5) - 1
    for mean, std in [(0.0, 0.3), (0.98, 0.05), (-1.2, 0.5)]:
        log = torch.tensor(2 * math.log(std))
        mass = (-pixel_nll(pixels, torch.tensor(mean), log)).exp().sum()
        # The bins of neighbours meet half way; the floor of 1e-12 adds nearly nothing.
        assert mass.item() == pytest.approx(1, abs=1e-6)
