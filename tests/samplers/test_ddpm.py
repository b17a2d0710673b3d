"""Ancestral sampling and DDIM against recorded runs and exact moments."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from conftest import FIXTURES
from diffit.convert import from_reference
from diffit.diffusion.denoiser import Denoiser, Estimate
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.diffusion.guidance import constant, guide_estimate, paired, power_cosine
from diffit.diffusion.posterior import log_variance, log_variance_bounds
from diffit.diffusion.schedule import levels, respace
from diffit.samplers.ddpm import ancestral, ancestral_learned, clipped, clipped_estimate, ddim
from diffit.samplers.heun import euler
from diffit.samplers.steps import posterior_mean
from oracle import Gaussian, three_bumps

ROW = build_formulation(DDPMConfig())


class Analytic(nn.Module):
    """The analytic network of the recorded diffusion runs."""

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        noise = 0.5 * x + 0.1 * torch.sin(time / 100)[:, None, None, None]
        return torch.cat([noise, torch.tanh(x)], 1)


DENOISER = Denoiser(Analytic(), ROW)


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "gaussian_diffusion.safetensors")


def start(z, sigmas):
    return z.double() * ROW.prior_std(sigmas[0])


def replay(draws):
    """The recorded draws, one after the other."""
    return iter(draws.double()).__next__


def off(actual, expected):
    """Largest error as a fraction of the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["p.noclip", "p.clip"])
def test_single_steps_of_the_full_process(recorded, name):
    check_steps(recorded, name, recorded["q.t"], recorded["q.x_t"], ROW.levels)


def test_single_steps_of_250(recorded):
    kept = ROW.levels[respace("250", 1000)]
    sample = check_steps(recorded, "p250", recorded["p250.t"], recorded["p250.x"], kept)
    torch.testing.assert_close(sample, recorded["p250.sample"], atol=1e-6, rtol=1e-5)


def check_steps(recorded, name, index, state, rungs):
    """Mean and variance of one step from each image's level, in the published state."""
    lowers = torch.cat([rungs.new_zeros(1), rungs])
    samples = []
    for i, t in enumerate(index):
        sigma, lower, above = rungs[t], lowers[t], rungs[min(t + 1, len(rungs) - 1)]
        estimate = DENOISER.estimate
        if name == "p.clip":
            estimate = clipped_estimate(estimate)
        x = state[i : i + 1].double() / ROW.signal(sigma)
        clean, fraction = estimate(x, sigma)
        low, high = log_variance_bounds(sigma, lower, above)
        signal = ROW.signal(lower)
        found = {
            "pred_xstart": clean,
            "mean": signal * posterior_mean(x, clean, sigma, lower),
            "log_variance": log_variance(fraction, low, high) + 2 * signal.log(),
        }
        found["variance"] = found["log_variance"].exp()
        for key, value in found.items():
            expected = recorded[f"{name}.{key}"][i]
            torch.testing.assert_close(value[0].float(), expected, atol=1e-6, rtol=1e-5)
        noise = recorded[f"{name}.noise"][i] if f"{name}.noise" in recorded else 0
        samples.append(found["mean"][0] + (t > 0) * found["variance"][0].sqrt() * noise)
    return torch.stack(samples).float()


def test_forward_process_and_posterior(recorded):
    sigma = ROW.levels[recorded["q.t"]]
    signal = ROW.signal(sigma).reshape(-1, 1, 1, 1)
    x = recorded["q.x_start"] + sigma.reshape(-1, 1, 1, 1) * recorded["q.noise"]
    torch.testing.assert_close((signal * x).float(), recorded["q.x_t"], atol=1e-6, rtol=1e-5)
    lowers = torch.cat([sigma.new_zeros(1), ROW.levels])[recorded["q.t"]]
    for i, (s, lower) in enumerate(zip(sigma, lowers, strict=True)):
        mean = ROW.signal(lower) * posterior_mean(x[i], recorded["q.x_start"][i], s, lower)
        torch.testing.assert_close(
            mean.float(), recorded["q.posterior_mean"][i], atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize(("steps", "clip"), [(10, False), (50, True)])
def test_ancestral_run_with_learned_variance(recorded, steps, clip):
    key = f"ddpm_loop.{steps}"
    sigmas = levels("respaced", steps, ROW)
    states = []

    def watched(x, sigma):
        states.append(x * ROW.signal(sigma))
        return (clipped_estimate if clip else lambda e: e)(DENOISER.estimate)(x, sigma)

    x = start(recorded[f"{key}.z"], sigmas)
    end = ancestral_learned(watched, x, sigmas, noise=replay(recorded[f"{key}.noise"]))
    assert off(end, recorded[f"{key}.output"]) < 1e-5
    if f"{key}.trajectory" in recorded:
        trajectory = recorded[f"{key}.trajectory"]
        for state, expected in zip([*states[1:], end], trajectory, strict=True):
            assert off(state, expected) < 1e-5


@pytest.mark.parametrize(("name", "clip"), [("ddim25", False), ("10", True)])
def test_ddim_run(recorded, name, clip):
    key = f"ddim_loop.{name}.eta0"
    sigmas = levels("ddim", 25, ROW) if name == "ddim25" else levels("respaced", 10, ROW)
    denoise = clipped(DENOISER) if clip else DENOISER
    end = ddim(denoise, start(recorded[f"{key}.z"], sigmas), sigmas)
    assert off(end, recorded[f"{key}.output"]) < 1e-5


@pytest.mark.parametrize(
    ("family", "file", "steps"),
    [("diffit", "diffit_latent_tiny", 10), ("dit", "dit_tiny", 6)],
)
@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_guided_runs_of_the_references(family, file, steps, method):
    with safe_open(FIXTURES / f"{file}.safetensors", "pt") as handle:
        meta = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    args = json.loads(meta["constructor"])
    denoiser = Denoiser(from_reference(family, state, args), ROW)
    guidance = json.loads(meta["cfg"])
    weight = constant(guidance["cfg_scale"])
    if "scale_pow" in guidance:
        weight = power_cosine(guidance["cfg_scale"], guidance["scale_pow"], ROW.progress)
    label = tensors["sampling.y"][:2]
    sigmas = levels("ddim" if method == "ddim" and family == "diffit" else "respaced", steps, ROW)
    x = start(tensors["sampling.z"], sigmas)
    if method == "ddim":
        guided = paired(denoiser, label, null=args["num_classes"], weight=weight, channels=3)
        end = ddim(guided, x, sigmas)
    else:
        estimate = guide_estimate(
            lambda x, sigma: denoiser.estimate(x, sigma, label), denoiser, weight=weight, channels=3
        )
        noise = replay(tensors["sampling.ddpm.noise"])
        end = ancestral_learned(estimate, x, sigmas, noise=noise)
    assert off(end, tensors[f"sampling.{method}.output"]) < 1e-5


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ancestral, {}),
        (ancestral, {"variance": "large"}),
        (ddim, {"eta": 1.0}),
        (ddim, {"eta": 0.5}),
    ],
)
def test_samples_have_the_moments_of_the_data(sampler, options):
    data, generator = Gaussian(), torch.manual_seed(0)
    count = 20_000
    sigmas = levels("respaced", 300, ROW)
    x = torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=generator)
    x = x * ROW.prior_std(sigmas[0])

    def noise():
        return torch.randn(x.shape, dtype=torch.float64, generator=generator)

    end = sampler(data, x, sigmas, noise=noise, **options)
    assert end.mean().item() == pytest.approx(data.mean, abs=4 * data.std / count**0.5)
    # Three hundred steps leave a bias below one percent beside the Monte-Carlo error.
    assert end.std().item() == pytest.approx(data.std, rel=0.01 + 4 / (2 * count) ** 0.5)


def test_ddim_without_noise_is_the_flow_in_first_order():
    sigmas = levels("respaced", 20, ROW)
    x = torch.randn(8, 1, 1, 2, dtype=torch.float64) * sigmas[0]
    torch.testing.assert_close(ddim(three_bumps(), x, sigmas), euler(three_bumps(), x, sigmas))


def test_ddim_with_full_noise_is_ancestral():
    sigmas = levels("respaced", 20, ROW)
    x = torch.randn(8, 1, 1, 2, dtype=torch.float64) * sigmas[0]
    draws = torch.randn(19, *x.shape)
    torch.testing.assert_close(
        ddim(three_bumps(), x, sigmas, noise=replay(draws), eta=1.0),
        ancestral(three_bumps(), x, sigmas, noise=replay(draws)),
    )


def test_learned_variance_at_its_lower_bound_is_ancestral():
    sigmas = levels("respaced", 20, ROW)
    x = torch.randn(8, 1, 1, 2, dtype=torch.float64) * sigmas[0]
    draws = torch.randn(19, *x.shape)
    for fraction, variance in ((0.0, "small"), (1.0, "large")):

        def estimate(x, sigma, fraction=fraction):
            return Estimate(three_bumps()(x, sigma), torch.full_like(x, fraction))

        torch.testing.assert_close(
            ancestral_learned(estimate, x, sigmas, noise=replay(draws)),
            ancestral(three_bumps(), x, sigmas, noise=replay(draws), variance=variance),
        )


def test_refusals():
    x, sigmas = torch.zeros(1, 1, 1, 2), torch.tensor([2.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="ancestral_learned needs an Estimate"):
        ancestral_learned(three_bumps(), x, sigmas, noise=lambda: x)
    with pytest.raises(ValueError, match="eta is 2; it must lie between 0 and 1"):
        ddim(three_bumps(), x, sigmas, eta=2.0)
    with pytest.raises(ValueError, match="above 0 DDIM needs noise"):
        ddim(three_bumps(), x, sigmas, eta=0.5)
