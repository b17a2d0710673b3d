"""DPM-Solver-fast as DiMR and U-ViT sample: the recorded runs of the release."""

import json

import pytest
import torch
from safetensors import safe_open

from conftest import FIXTURES
from diffit.convert import from_reference
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.diffusion.guidance import constant, paired, power_cosine
from diffit.samplers.singlestep import dpmpp_singlestep
from diffit.sampling import SamplingConfig

FORMULATION = build_formulation(
    DDPMConfig(schedule="scaled-linear", learned_variance=False, interpolation="alpha", time="dimr")
)
LAW = FORMULATION.law


@pytest.fixture(scope="module")
def recorded():
    with safe_open(FIXTURES / "dimr_tiny.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = {key: json.loads(file.metadata()[key]) for key in ("constructor", "sampling")}
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    denoiser = Denoiser(from_reference("dimr", state, about["constructor"]), FORMULATION)
    return tensors, denoiser, about["sampling"]


def guidance(scale, power):
    """The release counts a constant from 0, a schedule from 1, and its progress by n / 1000."""
    if power < 0:
        return constant(1 + scale)
    return power_cosine(scale, power, lambda sigma: 1 - LAW.t(sigma))


def test_the_schedule_between_the_steps_is_the_releases(recorded):
    tensors = recorded[0]
    t = tensors["schedule.t"].double()
    sigma = LAW.sigma(t)
    log_alpha = LAW.signal(sigma).log()
    torch.testing.assert_close(
        log_alpha.float(), tensors["schedule.log_alpha"], rtol=2e-5, atol=1e-6
    )
    # The release counts sigma as that of x_t = alpha x.
    std = (sigma * LAW.signal(sigma)).float()
    torch.testing.assert_close(std, tensors["schedule.sigma"], rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(LAW.t(sigma), t, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "scale", "power"), [("const_0.4", 0.4, -1), ("power_2.8_p1.5", 2.8, 1.5)]
)
def test_guided_noise_is_the_releases(recorded, name, scale, power):
    tensors, denoiser, about = recorded
    sigma = FORMULATION.levels[416]  # n = 417
    x = tensors["sampling.z"].double() / LAW.signal(sigma)
    denoise = paired(
        denoiser, tensors["sampling.y"], null=about["null_class"], weight=guidance(scale, power)
    )
    with torch.no_grad():
        noise = (x - denoise(x, sigma)) / sigma
    expected = tensors[f"guidance.{name}"]
    torch.testing.assert_close(noise.float(), expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("run", range(4))
def test_recorded_runs_are_met(recorded, run):
    tensors, denoiser, about = recorded
    given = about["runs"][run]
    settings = SamplingConfig(
        sampler="dpmpp-3s", levels="uniform", steps=given["steps"], to_zero=False
    )
    sigmas = settings.sigmas(FORMULATION)
    weight = guidance(given["scale"], given["power"])
    denoise = paired(denoiser, tensors["sampling.y"], null=about["null_class"], weight=weight)
    x = tensors["sampling.z"].double() * FORMULATION.prior_std(sigmas[0])
    x = dpmpp_singlestep(denoise, x, sigmas, order=3) * FORMULATION.signal(sigmas[-1])
    expected = tensors[f"sampling.{run}.output"]
    assert (x.float() - expected).abs().max() < 1e-5 * expected.abs().max()
