"""EDM's samplers against recorded runs, a closed form, and their orders."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import FIXTURES
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import EDMConfig, build_formulation
from diffit.diffusion.schedule import levels
from diffit.samplers.heun import euler, heun
from oracle import Gaussian

ROW = build_formulation(EDMConfig())


class Sine(nn.Module):
    """The analytic network of the recorded runs."""

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        return torch.sin(x + time[:, None, None, None])


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "edm_sampler.safetensors")


def test_deterministic_runs(recorded):
    runs = [(18, {}), (5, {"low": 0.01, "high": 20.0, "rho": 3.0})]
    for k, (steps, options) in enumerate(runs):
        key = f"heun.{k}"
        sigmas = levels("karras", steps, ROW, **options)
        torch.testing.assert_close(sigmas, recorded[f"{key}.sigmas"], rtol=1e-10, atol=0)
        answers, states = [], []

        def watched(x, sigma, answers=answers, states=states):
            answers.append(Denoiser(Sine(), ROW)(x, sigma))
            states.append(x)
            return answers[-1]

        end = heun(watched, recorded[f"{key}.latents"].double() * sigmas[0], sigmas)
        tight = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(end, recorded[f"{key}.output"], **tight)
        torch.testing.assert_close(
            torch.stack([*states[::2], end]), recorded[f"{key}.trajectory"], **tight
        )
        torch.testing.assert_close(
            torch.stack(answers[::2]).float(), recorded[f"{key}.denoised_first"], **tight
        )


def test_run_with_churn(recorded):
    sigmas = levels("karras", 8, ROW)
    # The recording drew noise at every step; this sampler draws it where churn acts.
    acts = (sigmas[:-1] >= 0.05) & (sigmas[:-1] <= 50)
    noise = iter(recorded["heun.2.noise"][acts]).__next__
    end = heun(
        Denoiser(Sine(), ROW),
        recorded["heun.2.latents"].double() * sigmas[0],
        sigmas,
        noise=noise,
        churn=10,
        churn_min=0.05,
        churn_max=50,
        churn_noise=1.003,
    )
    torch.testing.assert_close(end, recorded["heun.2.output"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_error_falls_with_the_order_against_the_closed_form(sampler, order):
    data, x = Gaussian(), torch.linspace(-9, 9, 64, dtype=torch.float64).reshape(-1, 1, 1, 1)

    def error(steps):
        sigmas = levels("karras", steps + 1, ROW, low=0.05, high=5)[:-1]
        return (sampler(data, x, sigmas) - data.solution(x, 5, 0.05)).abs().max().item()

    assert error(60) / error(120) == pytest.approx(2**order, rel=0.05)


def test_churn_keeps_the_moments_of_the_data():
    data, generator, count = Gaussian(), torch.manual_seed(0), 20_000
    sigmas = levels("karras", 80, ROW)
    unit = torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=generator)

    def noise():
        return torch.randn(unit.shape, dtype=torch.float64, generator=generator)

    end = heun(data, unit * sigmas[0], sigmas, noise=noise, churn=30)
    assert end.mean().item() == pytest.approx(data.mean, abs=4 * data.std / count**0.5)
    assert end.std().item() == pytest.approx(data.std, rel=0.005 + 4 / (2 * count) ** 0.5)


def test_a_float32_state_loses_little_from_1000_to_a_thousandth():
    data = Gaussian()
    sigmas = levels("karras", 60, ROW, low=1e-3, high=1000)[:-1]
    x = torch.linspace(-2, 2, 32, dtype=torch.float64).reshape(-1, 1, 1, 1) * 1000
    exact, rounded = heun(data, x, sigmas), heun(data, x.float(), sigmas)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, atol=2e-4, rtol=0)


def test_refusals():
    x, sigmas = torch.zeros(1, 1, 1, 1), torch.tensor([2.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="churn is -1; it must not be negative"):
        heun(Gaussian(), x, sigmas, churn=-1)
    with pytest.raises(ValueError, match="churn is 5; above 0 Heun's method needs noise"):
        heun(Gaussian(), x, sigmas, churn=5)
