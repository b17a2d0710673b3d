"""Likelihoods against recorded ones, closed forms, and the way back."""

import math

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.diffusion.formulation import (
    DDPMConfig,
    EDMConfig,
    FlowConfig,
    InDIConfig,
    SubVPConfig,
    VEConfig,
    VPConfig,
    build_formulation,
)
from diffit.samplers.likelihood import dequantised, flow, likelihood, lower_end, rademacher
from oracle import Correlated, Gaussian

ROWS = {
    "vp": build_formulation(VPConfig()),
    "subvp": build_formulation(SubVPConfig()),
    "ve": build_formulation(VEConfig(sigma_min=0.01, sigma_max=50)),
    "edm": build_formulation(EDMConfig()),
    "flow": build_formulation(FlowConfig()),
    "ddpm": build_formulation(DDPMConfig()),
}
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "sde.safetensors")


@pytest.fixture(scope="module")
def data(recorded):
    rho, between, scale = recorded["prior_cov_params"].tolist()
    place = torch.arange(6, dtype=torch.float64)
    line = rho ** (place[:, None] - place).abs()
    colour = (1 - between) * torch.eye(3) + between * torch.ones(3, 3)
    covariance = scale * torch.kron(colour.double(), torch.kron(line, line))
    return Correlated(recorded["prior_mean"].reshape(3, 6, 6), covariance)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_recorded_likelihoods(recorded, data, name):
    key = f"{name}/lik"
    x, row = recorded["x"], ROWS[name]
    found = likelihood(data, x, row, probe=recorded[f"{key}/hutchinson"], **TIGHT)
    # The prior of VE is 50 times as wide as that of the others.
    wide = 50.0 if name == "ve" else 1.0
    expected = recorded[f"{key}/z"]
    torch.testing.assert_close(found.latent, expected, rtol=1e-6, atol=1e-6 * wide)
    torch.testing.assert_close(found.bits, recorded[f"{key}/bpd"], rtol=1e-6, atol=1e-6)


def test_recorded_likelihood_with_the_exact_divergence(recorded, data):
    found = likelihood(data, recorded["x"][:1], ROWS["vp"], probe=None, rtol=1e-6, atol=1e-6)
    expected = recorded["vp/lik/closed_form_bpd"][:1]
    torch.testing.assert_close(found.bits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_bits_of_a_gaussian_are_the_closed_form(name):
    row, data = ROWS[name], Gaussian()
    x = data.draw((2, 1, 2, 2), torch.manual_seed(0))
    found = likelihood(data, x, row, probe=None, rtol=1e-8, atol=1e-8)
    ends = torch.tensor([lower_end(row), row.sigma_max], dtype=torch.float64)
    low, high = (float(e) for e in ends)
    signal, std = float(row.signal(ends[:1])), float(row.prior_std(ends[1]))
    start = x / signal
    z = data.solution(start, low, high)
    gain = math.sqrt((data.std**2 + high**2) / (data.std**2 + low**2))
    density = -((z / std) ** 2) / 2 - math.log(std * math.sqrt(2 * math.pi))
    density = (density + math.log(gain) - math.log(signal)).flatten(1).mean(1)
    torch.testing.assert_close(found.bits, 7 - density / math.log(2), rtol=0, atol=1e-5)


def test_hutchinsons_estimate_has_no_bias(data):
    x = data.solution(torch.randn(1, 3, 6, 6, generator=torch.manual_seed(1)).double(), 1, 0.01)
    count = 40
    probes = rademacher((count, 3, 6, 6), torch.manual_seed(2))
    bits = likelihood(data, x.expand(count, -1, -1, -1), ROWS["vp"], probe=probes).bits
    exact = likelihood(data, x, ROWS["vp"], probe=None, rtol=1e-4, atol=1e-4).bits
    assert abs(bits.mean() - exact) <= 3 * bits.std() / count**0.5 + 1e-4


def test_the_flow_leads_back(data):
    x = torch.randn(2, 3, 6, 6, generator=torch.manual_seed(1)).double()
    probe = rademacher((2, 3, 6, 6), torch.manual_seed(2))
    up = flow(data, x, 0.01, 50, probe=probe, **TIGHT)
    down = flow(data, up.x, 50, 0.01, probe=probe, **TIGHT)
    torch.testing.assert_close(down.x, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(down.change, -up.change, rtol=1e-7, atol=1e-6)


def test_an_image_has_the_steps_of_its_own(data):
    x = torch.randn(3, 3, 6, 6, generator=torch.manual_seed(1)).double()
    x[1] *= 30
    probe = rademacher((3, 3, 6, 6), torch.manual_seed(2))
    together = likelihood(data, x, ROWS["edm"], probe=probe).bits
    alone = likelihood(data, x[:1], ROWS["edm"], probe=probe[:1]).bits
    torch.testing.assert_close(together[:1], alone, rtol=1e-12, atol=0)


def test_dequantisation_stays_within_the_level():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8)
    torch.testing.assert_close(
        dequantised(images, torch.tensor([0.0, 0.5, 1.0])),
        torch.tensor([-1.0, 1 / 256, 1.0], dtype=torch.float64),
    )


def test_likelihood_refusals():
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="between levels above 0"):
        flow(Gaussian(), x, 0, 1, probe=x)
    with pytest.raises(ValueError, match="must be above 0"):
        flow(Gaussian(), x, 0.1, 1, probe=x, rtol=0)
    with pytest.raises(ValueError, match="did not arrive"):
        flow(lambda x, sigma: x * math.nan, x, 0.1, 1, probe=x, most=5)
    with pytest.raises(ValueError, match="indi restores images and has no likelihood"):
        lower_end(build_formulation(InDIConfig()))
