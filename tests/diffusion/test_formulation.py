"""The table of formulations: each row makes its paper's own network into D."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.diffusion.denoiser import Denoiser, over
from diffit.diffusion.formulation import (
    TIMES,
    DDPMConfig,
    EDMConfig,
    FlowConfig,
    FormulationConfig,
    SubVPConfig,
    VEConfig,
    VPConfig,
    build_formulation,
)
from oracle import ExactNetwork, Gaussian, three_bumps

CONFIGS = {
    "ddpm-eps": DDPMConfig(learned_variance=False),
    "ddpm-v": DDPMConfig(predict="v", learned_variance=False),
    "ddpm-cosine": DDPMConfig(schedule="cosine", learned_variance=False),
    "ddpm-sd": DDPMConfig(schedule="scaled-linear", interpolation="alpha", learned_variance=False),
    "vp": VPConfig(),
    "subvp": SubVPConfig(),
    "ve": VEConfig(),
    "edm": EDMConfig(),
    "flow": FlowConfig(),
    "flow-logit-normal": FlowConfig(density="logit-normal"),
}
ROWS = {name: build_formulation(config) for name, config in CONFIGS.items()}
LEVEL_OF_TIME = {
    "ddpm": lambda law: law.sigma_at,
    "vp": lambda law: lambda time: law.sigma(time / 999),
    "subvp": lambda law: lambda time: law.sigma(time / 999),
    "ve": lambda law: lambda time: 2 * time.exp(),
    "edm": lambda law: lambda time: (4 * time).exp(),
    "flow": lambda law: lambda time: time / (1 - time),
}
SIGMA = torch.logspace(-3, 3, 61, dtype=torch.float64)


def inside(row, count=24):
    """Levels between the ends of a row."""
    return torch.logspace(
        math.log10(row.sigma_min), math.log10(row.sigma_max), count, dtype=torch.float64
    )


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("oracle", [Gaussian(), three_bumps()], ids=["gaussian", "mixture"])
def test_an_exact_network_makes_the_exact_denoiser(name, oracle):
    row = ROWS[name]
    network = ExactNetwork(oracle, row, LEVEL_OF_TIME[row.name](row.law))
    sigma = inside(row)
    unit = torch.randn(len(sigma), 1, 1, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    x = 0.3 + over((0.5 + sigma**2).sqrt(), unit) * unit
    clean = Denoiser(network, row)(x, sigma)
    # The network is told its time in float32: near t = 1 a flow knows sigma to 6e-5 only.
    torch.testing.assert_close(clean, oracle(x, sigma), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("name", ["ddpm-eps", "vp", "subvp"])
def test_noise_prediction_sees_the_published_state(name):
    row = ROWS[name]
    clean, noise = torch.tensor([0.8, -0.6], dtype=torch.float64)
    signal = row.signal(SIGMA)
    state = signal * clean + signal * SIGMA * noise
    skip, out, inp, _ = row.scalings(SIGMA)
    x = clean + SIGMA * noise
    torch.testing.assert_close(inp * x, state)
    # At sigma 1000 the sum cancels three digits.
    torch.testing.assert_close(skip * x + out * noise, clean.expand(61), atol=1e-12, rtol=0)
    if name != "subvp":
        torch.testing.assert_close(signal**2 * (1 + SIGMA**2), torch.ones_like(SIGMA))
    else:
        torch.testing.assert_close(signal * SIGMA, 1 - signal**2)


def test_v_prediction_and_velocity_give_the_clean_image():
    clean, noise = torch.tensor([0.8, -0.6], dtype=torch.float64)
    x = clean + SIGMA * noise
    skip, out, inp, _ = ROWS["ddpm-v"].scalings(SIGMA)
    signal = (1 + SIGMA**2).rsqrt()
    v = signal * noise - (1 - signal**2).sqrt() * clean
    torch.testing.assert_close(skip * x + out * v, clean.expand(61), atol=1e-12, rtol=0)
    skip, out, inp, t = ROWS["flow"].scalings(SIGMA)
    torch.testing.assert_close(inp * x, (1 - t) * clean + t * noise)
    torch.testing.assert_close(
        skip * x + out * (noise - clean), clean.expand(61), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("data", [0.5, 1])
def test_preconditioning_is_the_recorded_one(data):
    recorded = load_file(FIXTURES / "edm_sampler.safetensors")
    row = build_formulation(EDMConfig(sigma_data=data))
    found = row.scalings(recorded["precond.sigma"].double())
    for name, value in zip(("c_skip", "c_out", "c_in", "c_noise"), found, strict=True):
        expected = recorded[f"precond.sd{data}.{name}"].double()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-8)


def test_times_of_a_discrete_row():
    sigma = ROWS["ddpm-eps"].levels[[0, 417, 999]]
    expected = {
        "index": [0, 417, 999],
        "index1": [1, 418, 1000],
        "dimr": [8 / 1000 - 4, 8 * 418 / 1000 - 4, 4],
        "t": [0.001, 0.418, 1],
        "1-t": [0.999, 0.582, 0],
        "999t": [0.999, 417.582, 999],
        "1000t": [1, 418, 1000],
        "log4": (sigma.log() / 4).tolist(),
        "log2": (sigma / 2).log().tolist(),
        "log_snr": (1 / sigma**2).log().tolist(),
    }
    assert set(expected) == set(TIMES)
    for kind, values in expected.items():
        row = build_formulation(DDPMConfig(time=kind))
        assert row.time(sigma).tolist() == pytest.approx(values, abs=1e-12)
        assert torch.equal(row.scalings(sigma).noise, row.time(sigma))


@pytest.mark.parametrize("name", ROWS)
def test_training_levels_cover_the_row(name):
    row = ROWS[name]
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    sigma = row.training_sigma(u)
    assert sigma.isfinite().all()
    assert (sigma > 0).all()
    assert (sigma.diff() >= 0).all()
    ends = row.training_sigma(torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64))
    assert ends.isfinite().all()
    assert (ends > 0).all()


def test_training_distributions_are_the_papers():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    u = u[torch.randperm(len(u), generator=torch.manual_seed(0))]
    ddpm = ROWS["ddpm-eps"]
    assert ddpm.law.index(ddpm.training_sigma(u)).long().bincount().tolist() == [100] * 1000
    t = ROWS["vp"].law.t(ROWS["vp"].training_sigma(u))
    torch.testing.assert_close(t, 1e-5 + (1 - 1e-5) * u)
    log = ROWS["edm"].training_sigma(u).log()
    assert (log.mean().item(), log.std().item()) == pytest.approx((-1.2, 1.2), rel=1e-3)
    log = ROWS["ve"].training_sigma(u).log()
    assert log.std().item() == pytest.approx(math.log(5000) / math.sqrt(12), rel=1e-4)
    torch.testing.assert_close(ROWS["flow"].law.t(ROWS["flow"].training_sigma(u)), u)
    # Of a flow, ln sigma is the logit of t.
    log = ROWS["flow-logit-normal"].training_sigma(u).log()
    assert (log.mean().item(), log.std().item()) == pytest.approx((0, 1), abs=1e-3)


def test_every_row_comes_from_its_config_by_name():
    adapter = TypeAdapter(FormulationConfig)
    for name in ("ddpm", "vp", "subvp", "ve", "edm", "flow"):
        assert build_formulation(adapter.validate_python({"name": name})).name == name


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (VEConfig, {"sigma_min": 3, "sigma_max": 2}, r"sigma_min \(3\) must be below sigma_max"),
        (EDMConfig, {"sigma_min": 90}, r"sigma_min \(90\) must be below sigma_max \(80\)"),
        (VPConfig, {"beta_min": 20}, r"beta_min \(20\) must be below beta_max \(20\)"),
        (DDPMConfig, {"steps": 20}, "steps is 20; the linear schedule needs more than 20"),
        (EDMConfig, {"time": "index"}, "'log4', 'log2' or 'log_snr'"),
    ],
)
def test_configs_refuse_what_cannot_be(kind, fields, message):
    with pytest.raises(ValidationError, match=message):
        kind(**fields)


@pytest.mark.parametrize("name", ROWS)
def test_level_zero_is_refused(name):
    with pytest.raises(ValueError, match="sigma is 0; the estimate needs noise"):
        ROWS[name].scalings(torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_published_steps_know_their_beta():
    index = torch.tensor([0, 999])
    assert ROWS["ddpm-eps"].beta(index).tolist() == pytest.approx([1e-4, 0.02])
    assert ROWS["vp"].beta(index).tolist() == pytest.approx([1e-4, 0.02])
    with pytest.raises(ValueError, match="formulation edm has no beta"):
        ROWS["edm"].beta(index)


def test_default_ends_are_the_published_ones():
    assert (ROWS["edm"].sigma_min, ROWS["edm"].sigma_max) == (0.002, 80)
    assert (ROWS["ve"].sigma_min, ROWS["ve"].sigma_max) == (0.02, 100)
    assert ROWS["flow"].sigma_max == pytest.approx(999)
    assert ROWS["vp"].sigma_max == pytest.approx(152.17, rel=1e-4)
    assert ROWS["ddpm-eps"].sigma_max == pytest.approx(157.41, rel=1e-4)
