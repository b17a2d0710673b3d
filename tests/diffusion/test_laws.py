"""Sigma laws against recorded schedules, closed forms, and their own inverses."""

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.diffusion import laws

T = torch.linspace(1e-4, 1, 500, dtype=torch.float64)
LAWS = {
    "linear": laws.Discrete(laws.linear_betas(1000)),
    "cosine": laws.Discrete(laws.cosine_betas(1000)),
    "alpha": laws.Discrete(laws.scaled_linear_betas(1000), "alpha"),
    "vp": laws.VP(),
    "subvp": laws.SubVP(),
    "ve": laws.VE(),
    "edm": laws.LogNormal(),
    "flow": laws.Flow(),
}


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "gaussian_diffusion.safetensors")


def close(actual, expected, rtol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


def test_linear_schedule_is_the_recorded_one(recorded):
    law = LAWS["linear"]
    close(law.betas, recorded["schedule.betas"])
    close(law.alpha_bar, recorded["schedule.alphas_cumprod"])
    close(law.levels, recorded["schedule.sqrt_recipm1_alphas_cumprod"])
    close(law.prior_std(law.levels), recorded["schedule.sqrt_recip_alphas_cumprod"])


def test_cosine_schedule_is_the_recorded_one(recorded):
    law = LAWS["cosine"]
    close(law.betas, recorded["schedule_cosine.betas"])
    close(law.alpha_bar, recorded["schedule_cosine.alphas_cumprod"])


def test_linear_schedule_scales_with_the_number_of_steps():
    # Twice the steps with half the betas: nearly the same noise at the end.
    ends = [laws.Discrete(laws.linear_betas(steps)).levels[-1] for steps in (1000, 4000)]
    assert ends[1] == pytest.approx(ends[0].item(), rel=0.05)


def test_scaled_linear_schedule_is_linear_in_the_root():
    roots = laws.scaled_linear_betas(1000).sqrt()
    close(roots[[0, -1]], torch.tensor([0.00085, 0.012], dtype=torch.float64).sqrt())
    assert roots.diff().std() < 1e-15


@pytest.mark.parametrize("name", LAWS)
def test_time_and_sigma_are_inverse(name):
    law = LAWS[name]
    t = T[T > 2e-3][:-1]  # a discrete law starts at t = 1 / T; flow and EDM have no sigma at 1
    sigma = law.sigma(t)
    assert (sigma.diff() > 0).all()
    # The discrete laws round times to within 1e-6 of a step: networks know integers only.
    atol = 2e-6 if isinstance(law, laws.Discrete) else 1e-12
    torch.testing.assert_close(law.t(sigma), t, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("name", LAWS)
def test_progress_runs_from_zero_to_one(name):
    law = LAWS[name]
    sigma = law.sigma(torch.tensor([1.0 - 1e-6, 0.5, 2e-3], dtype=torch.float64))
    progress = law.progress(sigma)
    assert progress[0] == pytest.approx(0, abs=2e-3)
    assert progress[2] == pytest.approx(1, abs=3e-3)
    assert (progress.diff() > 0).all()
    outside = law.progress(torch.tensor([1e-6, 1e6], dtype=torch.float64))
    assert (outside >= 0).all()
    assert (outside <= 1).all()


@pytest.mark.parametrize("name", ["linear", "vp", "subvp", "flow"])
def test_prior_is_a_unit_normal_of_the_published_state(name):
    law = LAWS[name]
    sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
    close(law.prior_std(sigma) * law.signal(sigma), torch.ones_like(sigma))


@pytest.mark.parametrize("name", ["ve", "edm"])
def test_prior_of_exploding_laws_is_the_noise(name):
    sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
    close(LAWS[name].prior_std(sigma), sigma)
    close(LAWS[name].signal(sigma), torch.ones_like(sigma))


def test_continuous_levels_are_the_ratios_of_std_and_mean():
    integral = 0.1 * T + 19.9 * T**2 / 2
    mean = (-integral / 2).exp()
    close(LAWS["vp"].sigma(T), (1 - mean**2).sqrt() / mean, rtol=1e-9)
    close(LAWS["subvp"].sigma(T), (1 - mean**2) / mean, rtol=1e-9)
    close(LAWS["subvp"].signal(LAWS["subvp"].sigma(T)), mean)
    close(LAWS["vp"].signal(LAWS["vp"].sigma(T)), mean)
    close(LAWS["ve"].sigma(T), 0.02 * 5000**T)


@pytest.mark.parametrize("name", ["linear", "cosine", "alpha"])
def test_index_of_a_level_is_its_integer(name):
    law = LAWS[name]
    index = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(law.index(law.levels), index)
    # A level that went through float32 still finds its integer.
    assert torch.equal(law.index(law.levels.float().double()), index)


def test_index_between_levels_is_linear_in_the_chosen_coordinate():
    first, second = LAWS["linear"].levels[[500, 501]]
    middle = (first.log() * 0.75 + second.log() * 0.25).exp()
    assert LAWS["linear"].index(middle).item() == pytest.approx(500.25)
    log_alpha = -torch.log1p(LAWS["alpha"].levels[[500, 501]] ** 2) / 2
    mixed = log_alpha[0] * 0.75 + log_alpha[1] * 0.25
    sigma = torch.expm1(-2 * mixed).sqrt()
    assert LAWS["alpha"].index(sigma).item() == pytest.approx(500.25)


def test_index_outside_the_levels_is_the_nearest_end():
    sigma = torch.tensor([1e-6, 1e6], dtype=torch.float64)
    assert LAWS["linear"].index(sigma).tolist() == [0, 999]


def test_index_accepts_a_single_number():
    law = LAWS["linear"]
    assert law.index(law.levels[7]).shape == ()
    assert law.index(law.levels[7]) == 7
