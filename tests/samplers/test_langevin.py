"""Predictor-corrector and Langevin dynamics against recorded runs and exact moments."""

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.diffusion.formulation import VEConfig, build_formulation
from diffit.diffusion.laws import VE, VP, SubVP
from diffit.diffusion.schedule import levels
from diffit.diffusion.sde import Rates, rates, step_rates
from diffit.samplers.langevin import (
    PREDICTORS,
    ancestral_move,
    annealed_langevin,
    langevin_step,
    named_predictor_corrector,
    predictor_corrector,
    published_ancestral,
    published_step,
)
from diffit.samplers.unipc import unipc
from oracle import Correlated, Gaussian

LAWS = {"vp": VP(), "subvp": SubVP(), "ve": VE(0.01, 50)}
ROW = build_formulation(VEConfig())


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "sde.safetensors")


@pytest.fixture(scope="module")
def data(recorded):
    """The recorded runs' prior, whose denoiser is exact."""
    rho, between, scale = recorded["prior_cov_params"].tolist()
    place = torch.arange(6, dtype=torch.float64)
    line = rho ** (place[:, None] - place).abs()
    colour = (1 - between) * torch.eye(3) + between * torch.ones(3, 3)
    covariance = scale * torch.kron(colour.double(), torch.kron(line, line))
    return Correlated(recorded["prior_mean"].reshape(3, 6, 6), covariance)


def euler_maruyama(law, steps):
    """The published predictor of that name, in ``steps`` steps of equal time."""

    def of_a_step(sigma):
        f, g = rates(law, law.t(sigma))
        return Rates(f / steps, g / steps**0.5)

    return published_step(signal=law.signal, rates=of_a_step)


def discretised(law, steps):
    """The published reverse-diffusion predictor."""
    return published_step(
        signal=law.signal, rates=lambda sigma: step_rates(law, law.t(sigma), steps)
    )


def published_factor(law, steps):
    """1 - beta for VP, 1 for VE."""
    if not isinstance(law, VP):
        return None
    return lambda sigma: 1 - step_rates(law, law.t(sigma), steps).g ** 2


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("kind", ["euler_maruyama", "reverse_diffusion"])
def test_published_predictors(recorded, data, name, kind):
    law, key = LAWS[name], f"{name}/predictor_{kind}"
    make = euler_maruyama if kind == "euler_maruyama" else discretised
    sigma = law.sigma(recorded[f"{name}/step_t"][0])
    signal = law.signal(sigma)
    x = recorded[f"{name}/step_x"] / signal
    # The published state keeps the signal of its own level.
    mean, std = make(law, 1000)(x, data(x, sigma), sigma, sigma)
    torch.testing.assert_close(signal * mean, recorded[f"{key}/x_mean"], rtol=1e-9, atol=1e-10)
    moved = signal * (mean + std * recorded[f"{key}/noise"][0])
    torch.testing.assert_close(moved, recorded[f"{key}/x"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_published_ancestral_predictors(recorded, data, name):
    law, key = LAWS[name], f"{name}/predictor_ancestral_sampling"
    t = recorded[f"{name}/step_t"][0]
    sigma = law.sigma(t)
    x = recorded[f"{name}/step_x"] / law.signal(sigma)
    if name == "vp":
        step = published_ancestral(
            signal=law.signal, beta=lambda sigma: step_rates(law, law.t(sigma), 1000).g ** 2
        )
        mean, std = step(x, data(x, sigma), sigma, sigma)
        signal = law.signal(sigma)
    else:
        # The score is that of time t, the step that of the grid below it.
        index = (t * 999).floor()
        here, lower = law.sigma(index / 999), law.sigma((index - 1) / 999)
        score = (data(x, sigma) - x) / sigma**2
        mean, std = ancestral_move(x, x + here**2 * score, here, lower)
        signal = 1.0
    torch.testing.assert_close(signal * mean, recorded[f"{key}/x_mean"], rtol=1e-9, atol=1e-10)
    moved = signal * (mean + std * recorded[f"{key}/noise"][0])
    torch.testing.assert_close(moved, recorded[f"{key}/x"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_recorded_scores_and_drifts(recorded, data, name):
    law, t, x = LAWS[name], recorded["t"], recorded[f"{name}/grid_x"]
    sigma = law.sigma(t)
    signal = law.signal(sigma).reshape(-1, 1, 1, 1)
    state = x / signal
    score = (data(state, sigma) - state) / (signal * sigma.reshape(-1, 1, 1, 1) ** 2)
    f, g = (rate.reshape(-1, 1, 1, 1) for rate in rates(law, t))
    near = {"rtol": 1e-7, "atol": 1e-8}
    # At sigma 1e-6 clean and x agree in 12 digits, and their difference has but 4.
    clear = sigma > 1e-5
    for key, value in (
        ("score", score),
        ("reverse_drift", f * x - g**2 * score),
        ("ode_drift", f * x - g**2 * score / 2),
    ):
        torch.testing.assert_close(value[clear], recorded[f"{name}/{key}"][clear], **near)
    assert clear.sum() >= 8
    top = law.sigma(torch.tensor(1.0, dtype=torch.float64))
    std = law.high if name == "ve" else float(law.signal(top) * law.prior_std(top))
    normal = torch.distributions.Normal(0.0, std)
    expected = normal.log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(recorded[f"{name}/prior_logp"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize(("kind", "measure"), [("langevin", "batch"), ("ald", "level")])
def test_published_correctors(recorded, data, name, kind, measure):
    law, key = LAWS[name], f"{name}/corrector_{kind}"
    sigma = law.sigma(recorded[f"{name}/step_t"][0])
    signal = law.signal(sigma)

    def stay(x, clean, sigma, lower):
        return x, 0.0

    end = predictor_corrector(
        data,
        recorded[f"{name}/step_x"] / signal,
        torch.stack([sigma, torch.zeros_like(sigma)]),
        noise=iter(recorded[f"{key}/noise"]).__next__,
        corrections=2,
        snr=float(recorded["snr"]),
        predict=stay,
        factor=published_factor(law, 1000),
        measure=measure,
    )
    torch.testing.assert_close(signal * end, recorded[f"{key}/x"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_published_run(recorded, data, name):
    law = LAWS[name]
    t = torch.linspace(1, float(recorded[f"{name}/pc/eps"]), 20, dtype=torch.float64)
    sigmas = torch.cat([law.sigma(t), torch.zeros(1)])
    make = discretised if name == "ve" else euler_maruyama
    end = predictor_corrector(
        data,
        recorded[f"{name}/pc/prior_noise"] * law.prior_std(sigmas[0]),
        sigmas,
        noise=iter(recorded[f"{name}/pc/noise"]).__next__,
        corrections=0 if name == "subvp" else 1,
        snr=float(recorded["snr"]),
        predict=make(law, 20),
        factor=published_factor(law, 20),
        measure="batch",
    )
    torch.testing.assert_close(end, recorded[f"{name}/pc/sample"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_probability_flow_of_the_recorded_starts(recorded, data, name):
    law, z = LAWS[name], recorded[f"{name}/ode/z"]
    eps = float(recorded[f"{name}/pc/eps"])
    ends = law.sigma(torch.tensor([1.0, eps], dtype=torch.float64))
    start = z / law.signal(ends[0])
    exact = law.signal(ends[1]) * data.solution(start, *ends.tolist())
    torch.testing.assert_close(exact, recorded[f"{name}/ode/closed_form"], rtol=1e-6, atol=1e-6)
    sigmas = levels("log-uniform", 400, ROW, low=float(ends[1]), high=float(ends[0]))[:-1]
    end = law.signal(ends[1]) * unipc(data, start, sigmas)
    torch.testing.assert_close(end, recorded[f"{name}/ode/sample"], rtol=1e-6, atol=1e-6)


def test_annealed_langevin_run(recorded, data):
    sigmas = recorded["ncsn/sigmas"]
    images = recorded["ncsn/images"]
    options = {
        "corrections": int(recorded["ncsn/n_steps_each"]),
        "step": float(recorded["ncsn/step_lr"]),
    }

    def noise():
        return iter(recorded["ncsn/noise"]).__next__

    before = annealed_langevin(data, recorded["ncsn/x_init"], sigmas, noise=noise(), **options)
    torch.testing.assert_close(before, images[-2], rtol=1e-9, atol=1e-10)
    to_zero = torch.cat([sigmas, torch.zeros(1)])
    end = annealed_langevin(data, recorded["ncsn/x_init"], to_zero, noise=noise(), **options)
    torch.testing.assert_close(end, images[-1], rtol=1e-9, atol=1e-10)


def test_langevin_steps_keep_the_distribution_of_their_level():
    data, generator, count = Gaussian(), torch.manual_seed(0), 40_000
    sigma = torch.tensor(0.5, dtype=torch.float64)
    x = data.draw((count, 1, 1, 1), generator)
    x = x + sigma * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    for _ in range(50):
        noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        x = langevin_step(x, (data(x, sigma) - x) / sigma**2, noise, torch.tensor(0.005))
    std = (data.std**2 + 0.5**2) ** 0.5
    assert x.mean().item() == pytest.approx(data.mean, abs=4 * std / count**0.5)
    assert x.std().item() == pytest.approx(std, rel=0.005 + 4 / (2 * count) ** 0.5)


@pytest.mark.parametrize("predict", PREDICTORS.values(), ids=PREDICTORS)
def test_samples_have_the_moments_of_the_data(predict):
    data, generator, count = Gaussian(), torch.manual_seed(0), 300
    sigmas = levels("log-uniform", 150, ROW)
    # The step's length follows from an image's norms, which many pixels make steady.
    unit = torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=generator)

    def noise():
        return torch.randn(unit.shape, dtype=torch.float64, generator=generator)

    end = predictor_corrector(data, unit * sigmas[0], sigmas, noise=noise, predict=predict)
    assert end.mean().item() == pytest.approx(data.mean, abs=4 * data.std / unit.numel() ** 0.5)
    # 150 steps and the corrector's own step length leave a few percent.
    assert end.std().item() == pytest.approx(data.std, rel=0.05)


def test_an_image_does_not_depend_on_the_others():
    sigmas, noise = levels("log-uniform", 10, ROW), torch.randn(19, 3, 1, 4, 4).double()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64) * 100
    together = predictor_corrector(Gaussian(), x, sigmas, noise=iter(noise).__next__)
    alone = predictor_corrector(Gaussian(), x[1:2], sigmas, noise=iter(noise[:, 1:2]).__next__)
    torch.testing.assert_close(together[1:2], alone)


def test_refusals():
    x, sigmas = torch.zeros(1, 1, 1, 1), torch.tensor([2.0, 1.0])
    with pytest.raises(ValueError, match="there is no 'euler'; choose from reverse-diffusion"):
        named_predictor_corrector(Gaussian(), x, sigmas, noise=lambda: x, predictor="euler")
    with pytest.raises(ValueError, match=r"corrections \(-1\) must not be negative"):
        predictor_corrector(Gaussian(), x, sigmas, noise=lambda: x, corrections=-1)
