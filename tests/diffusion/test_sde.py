"""Forward SDEs against the recorded coefficients and their own marginals."""

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.diffusion.laws import VE, VP, Flow, LogNormal, SubVP
from diffit.diffusion.sde import rates, step_rates

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
LAWS = {"vp": VP(), "subvp": SubVP(), "ve": VE(0.01, 50)}


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "sde.safetensors")


def column(values):
    return values.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", LAWS)
def test_coefficients_are_the_recorded_ones(recorded, name):
    law, t, x = LAWS[name], recorded["t"], recorded[f"{name}/grid_x"]
    sigma = law.sigma(t)
    signal = law.signal(sigma)
    std = signal * sigma
    torch.testing.assert_close(std, recorded[f"{name}/marginal_std"], rtol=1e-8, atol=0)
    torch.testing.assert_close(column(signal) * x, recorded[f"{name}/marginal_mean"], **TIGHT)
    f, g = rates(law, t)
    torch.testing.assert_close(column(f) * x, recorded[f"{name}/drift"], **TIGHT)
    torch.testing.assert_close(g, recorded[f"{name}/diffusion"], **TIGHT)
    f, g = step_rates(law, t, 1000)
    torch.testing.assert_close(column(f) * x, recorded[f"{name}/discretize_f"], **TIGHT)
    torch.testing.assert_close(g, recorded[f"{name}/discretize_G"], **TIGHT)


@pytest.mark.parametrize("law", [*LAWS.values(), Flow()], ids=lambda law: type(law).__name__)
def test_rates_are_the_derivatives_of_signal_and_noise(law):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    sigma = law.sigma(t)
    # Where the signal is 1 it does not depend on t: the zero keeps it in the graph.
    log = law.signal(sigma).log() + 0 * t
    (change,) = torch.autograd.grad(log.sum(), t, retain_graph=True)
    (growth,) = torch.autograd.grad((sigma**2).sum(), t)
    f, g = rates(law, t.detach())
    torch.testing.assert_close(f, change)
    torch.testing.assert_close(g**2, law.signal(sigma.detach()) ** 2 * growth)


def test_steps_survive_the_way_through_sigma():
    for law in LAWS.values():
        t = torch.arange(1, 20, dtype=torch.float64) / 19
        there = step_rates(law, t, 20)
        back = step_rates(law, law.t(law.sigma(t)), 20)
        torch.testing.assert_close(back, there, rtol=1e-6, atol=0)


def test_a_law_without_time_of_its_own_has_no_sde():
    with pytest.raises(ValueError, match="LogNormal has no SDE"):
        rates(LogNormal(), torch.tensor(0.5))
