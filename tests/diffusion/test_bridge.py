"""IR-SDE, ResShift and InDI against recorded chains and closed forms."""

import itertools
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import nn

from conftest import FIXTURES
from diffit.diffusion.bridge import (
    IRSDE,
    THETAS,
    InDI,
    InDIConfig,
    IRSDEConfig,
    ResShift,
    ResShiftConfig,
)
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import EDMConfig, FormulationConfig, build_formulation
from diffit.diffusion.loss import denoising_loss, network_target
from diffit.samplers.ddpm import ancestral
from diffit.samplers.steps import ancestral_step, posterior_mean

RECORDED = load_file(FIXTURES / "restoration_supervised.safetensors")
CLEAN, IMAGE = RECORDED["x0"], RECORDED["lq"]
STEPS = 20


def irsde(schedule="cosine"):
    return IRSDE(THETAS[schedule](STEPS), float(RECORDED["irsde/eps"]), 0.2)


def row(process=None):
    process = process or irsde()
    return build_formulation(IRSDEConfig(steps=STEPS, noise=process.scale))


def close(a, b, **options):
    torch.testing.assert_close(a, b, **{"rtol": 1e-10, "atol": 1e-10} | options)


def recorded_noise(process, x, t):
    """The predictor of the recorded chains: exact."""
    mean = IMAGE + (CLEAN - IMAGE) * process.share[t]
    return (x - mean) / process.std[t]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_of_ir_sde_are_the_recorded_ones(schedule):
    process = irsde(schedule)
    close(process.thetas, RECORDED[f"irsde/{schedule}/thetas"])
    close(torch.tensor(process.dt).double(), RECORDED[f"irsde/{schedule}/dt"], rtol=1e-6)
    close(process.std, RECORDED[f"irsde/{schedule}/sigma_bars"])
    assert float(process.share[-1]) == pytest.approx(process.delta)


def test_ir_sde_in_the_one_coordinate_is_ir_sde():
    process, formulation = irsde(), row()
    levels = formulation.levels
    close(levels, process.std[1:] / process.share[1:])
    close(formulation.signal(levels), process.share[1:])
    assert float(formulation.prior_std(levels[-1])) == pytest.approx(0.2 / process.delta)
    close(formulation.shift(levels), 1 - process.share[1:])


@pytest.mark.parametrize("walk", ["sde", "ode"])
def test_steps_of_ir_sde_are_the_recorded_ones(walk):
    process, x = irsde(), RECORDED["irsde/cosine/xT"]
    for place, t in enumerate(range(STEPS, 0, -1)):
        eps = recorded_noise(process, x, t)
        if walk == "sde":
            x = process.sde_step(x, IMAGE, eps, t, RECORDED["irsde/cosine/sde/noise"][place])
        else:
            x = process.ode_step(x, IMAGE, eps, t)
        close(x, RECORDED[f"irsde/cosine/{walk}/xs"][place])


@pytest.mark.parametrize("walk", ["posterior", "optimum"])
def test_posterior_of_ir_sde_is_the_ancestral_step_of_the_one_coordinate(walk):
    process, levels = irsde(), [0.0, *row().levels.tolist()]
    x = RECORDED["irsde/cosine/xT"]
    for place, t in enumerate(range(STEPS, 0, -1)):
        eps = recorded_noise(process, x, t)
        here = process.level(x, IMAGE, t)
        clean = here - levels[t] * eps
        if walk == "posterior":
            noise = RECORDED["irsde/cosine/posterior/noise"][place]
            here = ancestral_step(here, clean, levels[t], levels[t - 1], noise)
        else:
            here = posterior_mean(here, clean, levels[t], levels[t - 1])
        x = process.state(here, IMAGE, t - 1)
        # The estimate of the clean image divides by B, 0.005 at the start.
        close(x, RECORDED[f"irsde/cosine/{walk}/xs"][place])


class Noise(nn.Module):
    """Says exactly how much noise is in x_t, in float64."""

    def __init__(self):
        super().__init__()
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        return recorded_noise(irsde(), x, int(time[0]))


def test_a_denoiser_in_the_row_ir_sde_repeats_the_recorded_chain():
    process, formulation = irsde(), row()
    denoiser = Denoiser(Noise(), formulation)
    noises = iter(RECORDED["irsde/cosine/posterior/noise"])
    sigmas = torch.cat([formulation.levels.flip(0), torch.zeros(1).double()])
    start = process.level(RECORDED["irsde/cosine/xT"], IMAGE, STEPS)
    end = ancestral(
        lambda x, sigma: denoiser(x, sigma, None, IMAGE),
        start,
        sigmas,
        noise=lambda: next(noises),
    )
    close(end, RECORDED["irsde/cosine/posterior/xs"][-1])


def test_the_row_ir_sde_needs_the_degraded_image():
    with pytest.raises(ValueError, match="starts from a degraded image; give it"):
        Denoiser(Noise(), row())(CLEAN, torch.tensor(1.0))


def resshift():
    return ResShift.of(ResShiftConfig())


def test_schedule_of_resshift_is_the_recorded_one():
    close(resshift().etas.sqrt(), RECORDED["resshift/sqrt_etas"])


def test_state_and_start_of_resshift_are_the_recorded_ones():
    process, noise = resshift(), RECORDED["resshift/q_noise"]
    for t in range(process.steps):
        time = torch.full((2,), (t + 1) / process.steps, dtype=torch.float64)
        close(process.state(CLEAN, IMAGE, noise, time), RECORDED["resshift/q_sample"][t])


def test_posterior_of_resshift_is_the_recorded_one():
    process = resshift()
    for t in range(process.steps):
        of_x, of_clean, variance = process.posterior((t + 1) / process.steps, t / process.steps)
        assert of_x == pytest.approx(float(RECORDED["resshift/posterior_mean_coef_xt"][t]))
        assert of_clean == pytest.approx(float(RECORDED["resshift/posterior_mean_coef_x0"][t]))
        assert variance == pytest.approx(float(RECORDED["resshift/posterior_variance"][t]))


def test_chain_of_resshift_is_the_recorded_one():
    process, x = resshift(), RECORDED["resshift/xT"]
    weight = float(RECORDED["resshift/chain/predictor_weight"])
    times = process.times(process.steps)
    for place, (t, lower) in enumerate(itertools.pairwise(times.tolist())):
        estimate = weight * CLEAN + (1 - weight) * x
        x = process.step(x, estimate, t, lower, RECORDED["resshift/chain/noise"][place])
        close(x, RECORDED["resshift/chain/xs"][place])


def test_leaving_times_out_keeps_the_distribution_of_resshift():
    """Of a known clean image every x_t is normal; mean and variance are those of `state`."""
    process, clean, image = resshift(), 0.3, -0.6
    mean, variance = image, process.kappa**2 * float(process.etas[-1])
    mean += (1 - float(process.etas[-1])) * (clean - image)
    times = process.times(4).tolist()
    for t, lower in itertools.pairwise(times):
        of_x, of_clean, added = process.posterior(t, lower)
        mean, variance = of_x * mean + of_clean * clean, of_x**2 * variance + added
        eta = float(process.eta(lower))
        assert mean == pytest.approx(clean + eta * (image - clean))
        assert variance == pytest.approx(process.kappa**2 * eta)


def test_resshift_has_its_own_times_alone():
    with pytest.raises(ValueError, match="has the times i / 15 alone"):
        resshift().eta(0.5)
    for steps in (0, 16):
        with pytest.raises(ValueError, match="this ResShift has 1 to 15"):
            resshift().times(steps)


def test_resshift_refuses_a_first_step_above_the_last():
    with pytest.raises(ValidationError, match="must be below last"):
        ResShiftConfig(first=5.0)


def test_indi_with_the_exact_estimate_runs_straight_to_the_clean_image():
    process = InDI(0.1)
    noise = torch.randn_like(IMAGE)
    x = start = process.start(IMAGE, noise)
    for t, lower in itertools.pairwise(process.times(5)):
        x = process.step(x, CLEAN, float(t), float(lower), torch.zeros_like(x))
        close(x, CLEAN + lower * (start - CLEAN))
        if lower > 0:
            close(process.state(CLEAN, IMAGE, noise, lower.expand(2)), x)
    assert torch.equal(x, CLEAN)


def gaussian_indi(steps):
    """InDI of degraded = clean + 0.5 noise, clean normal, by the exact estimate E[clean | x_t]."""
    process, x = InDI(), torch.tensor([[[[1.3]]]], dtype=torch.float64)
    for t, lower in itertools.pairwise(process.times(steps)):
        clean = x / (1 + (0.5 * float(t)) ** 2)
        x = process.step(x, clean, float(t), float(lower), x)
    return float(x)


def test_indi_converges_to_its_ode_in_first_order():
    """dx/dt = (x - clean) / t is x' = x 0.25 t / (1 + 0.25 t^2), solved by x ~ sqrt(1 + t^2/4)."""
    exact = 1.3 / math.sqrt(1.25)
    errors = [abs(gaussian_indi(steps) - exact) for steps in (50, 100)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


def test_indi_takes_a_step_at_least():
    with pytest.raises(ValueError, match="InDI takes at least 1"):
        InDI().times(0)


class Spy(nn.Module):
    """Remembers what it saw, and answers with zeros."""

    def __init__(self, condition_channels=3):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.config = type("", (), {"classes": 0, "condition_channels": condition_channels})()

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        self.x, self.time, self.image = x, time, image
        return torch.zeros_like(x)


ROWS = {
    "ir-sde": IRSDEConfig(),
    "resshift": ResShiftConfig(),
    "indi": InDIConfig(noise=0.2),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_network_sees_the_published_state(name):
    formulation, spy = build_formulation(ROWS[name]), Spy()
    clean, image = CLEAN.float(), IMAGE.float()
    noise = torch.randn_like(clean)
    sigma = formulation.training_sigma(torch.tensor([0.3, 0.8], dtype=torch.float64))
    loss = denoising_loss(Denoiser(spy, formulation), clean, noise, sigma, image=image)
    assert torch.equal(spy.image, image)
    for row in range(2):
        c, i, z = (each[row].double() for each in (clean, image, noise))
        if name == "ir-sde":
            t = int(spy.time[row])
            process = IRSDE.of(ROWS[name])
            state = i + process.share[t] * (c - i) + process.std[t] * z
            target = z
        elif name == "resshift":
            eta = resshift().etas[round(float(sigma[row]) * 15) - 1]
            state = (c + eta * (i - c) + 2 * eta.sqrt() * z) / (1 + 4 * eta).sqrt()
            target = c
        else:
            state = (1 - sigma[row]) * c + sigma[row] * (i + 0.2 * z)
            target = c
        torch.testing.assert_close(spy.x[row].double(), state, rtol=1e-4, atol=1e-5)
        assert float(loss.mse[row]) == pytest.approx(float((target**2).mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["resshift", "indi"])
def test_a_bridge_needs_the_degraded_image_and_learns_the_clean_one(name):
    formulation = build_formulation(ROWS[name])
    sigma = torch.tensor([1.0, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="starts from a degraded image; give it"):
        denoising_loss(Denoiser(Spy(), formulation), CLEAN, CLEAN, sigma)
    assert torch.equal(network_target(formulation, CLEAN, IMAGE, sigma), CLEAN)
    with pytest.raises(ValueError, match=r"start from the degraded image; use `Bridge.start`"):
        formulation.prior_std(sigma)


@pytest.mark.parametrize(("name", "shown"), [("indi", False), ("edm", True)])
def test_only_a_network_that_sees_the_image_in_x_may_go_without_it(name, shown):
    formulation = build_formulation({**ROWS, "edm": EDMConfig()}[name])
    spy = Spy(condition_channels=0)
    Denoiser(spy, formulation)(CLEAN, torch.tensor(0.5), None, IMAGE)
    assert (spy.image is not None) is shown  # shown to a network without channels, it is refused


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_are_read_by_name(name):
    assert TypeAdapter(FormulationConfig).validate_python({"name": name}).name == name
