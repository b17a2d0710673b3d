"""Level lists against recorded ones, their laws, and the refusals."""

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.diffusion.formulation import (
    DDPMConfig,
    EDMConfig,
    FlowConfig,
    VEConfig,
    VPConfig,
    build_formulation,
)
from diffit.diffusion.schedule import LEVELS, levels, respace
from diffit.errors import UsageError

DDPM = build_formulation(DDPMConfig())
EDM = build_formulation(EDMConfig())
FLOW = build_formulation(FlowConfig())
VP = build_formulation(VPConfig())
VE = build_formulation(VEConfig())


@pytest.mark.parametrize("steps", [18, 40, 79, 256])
def test_karras_levels_are_the_recorded_ones(steps):
    recorded = load_file(FIXTURES / "edm_sampler.safetensors")[f"karras.{steps}"]
    torch.testing.assert_close(levels("karras", steps, EDM), recorded, rtol=1e-10, atol=0)


@pytest.mark.parametrize("text", ["250", "50", "10", "10,15,25", "ddim25", "ddim50"])
def test_respaced_steps_are_the_recorded_ones(text):
    recorded = load_file(FIXTURES / "gaussian_diffusion.safetensors")
    key = f"respaced.{text.replace(',', '_')}"
    kept = respace(text, 1000)
    assert kept == recorded[f"{key}.timesteps"].tolist()
    alpha_bar = 1 / (1 + DDPM.levels[kept] ** 2)
    torch.testing.assert_close(alpha_bar, recorded[f"{key}.alphas_cumprod"], rtol=1e-12, atol=0)
    betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    # A beta is the small difference of two numbers near 1, in the recording as well.
    torch.testing.assert_close(betas, recorded[f"{key}.betas"], rtol=2e-12, atol=1e-15)


def test_respaced_levels_are_training_levels_from_the_top():
    sigmas = levels("respaced", 250, DDPM)
    assert torch.equal(sigmas[[0, -2, -1]], torch.stack([*DDPM.levels[[-1, 0]], torch.zeros(())]))
    assert DDPM.time(sigmas[:-1]).tolist() == respace("250", 1000)[::-1]
    in_sections = levels("respaced", 50, DDPM, sections="10,15,25")
    assert DDPM.time(in_sections[:-1]).tolist() == respace("10,15,25", 1000)[::-1]
    assert DDPM.time(levels("ddim", 25, DDPM)[:-1]).tolist() == list(range(960, -1, -40))


@pytest.mark.parametrize("formulation", [DDPM, EDM, FLOW, VP, VE], ids=lambda f: f.name)
@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_lists_decrease_to_zero(kind, steps, formulation):
    if kind in ("respaced", "ddim") and formulation.levels is None:
        with pytest.raises(UsageError, match=f"{formulation.name!r} has no discrete levels"):
            levels(kind, steps, formulation)
        return
    if kind in ("respaced", "ddim") and steps == 1:
        with pytest.raises(UsageError, match=r"at least 2|exactly 1"):
            levels(kind, steps, formulation)
        return
    sigmas = levels(kind, steps, formulation)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float64
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    if kind not in ("respaced", "ddim"):
        assert sigmas[0].item() == pytest.approx(formulation.sigma_max)


def test_log_uniform_levels_are_a_geometric_series():
    sigmas = levels("log-uniform", 9, EDM, low=0.01, high=100)[:-1]
    torch.testing.assert_close(sigmas, torch.logspace(2, -2, 9, dtype=torch.float64))


def test_uniform_levels_are_even_in_time():
    t = VP.law.t(levels("uniform", 11, VP)[:-1])
    torch.testing.assert_close(t, torch.linspace(1, 1e-3, 11, dtype=torch.float64))


def test_flow_levels_are_even_in_time_and_shifted_as_published():
    t = FLOW.law.t(levels("flow", 10, FLOW))
    torch.testing.assert_close(t, torch.linspace(0.999, 0, 11, dtype=torch.float64))
    shifted = FLOW.law.t(levels("flow", 10, FLOW, shift=3.0))
    plain = shifted / (3 - 2 * shifted)
    torch.testing.assert_close(plain[1:].diff(), plain[:-1].diff())
    assert shifted[0].item() == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("kind", "steps", "options", "message"),
    [
        ("karas", 18, {}, "no level list 'karas'; did you mean 'karras'"),
        ("karras", 0, {}, "steps is 0; sampling needs at least 1"),
        ("karras", 18, {"shift": 3.0}, "'karras' has no option 'shift'; it knows low, high, rho"),
        ("karras", 18, {"low": 90.0}, "levels from 80 down to 90: it must be 0 < low < high"),
        ("karras", 18, {"rho": 0.0}, "rho is 0; it must be above 0"),
        ("flow", 18, {"shift": -1.0}, "shift is -1; it must be above 0"),
        ("respaced", 1001, {}, "'1001' takes 1001 steps out of a section of 1000"),
        ("respaced", 25, {"sections": "10,x"}, "'10,x' is no respacing; write '250'"),
        ("respaced", 25, {"sections": "10,10"}, "make 20 steps, but steps is 25"),
        ("ddim", 999, {}, "no integer stride takes exactly 999 of 1000 steps"),
    ],
)
def test_refusals_name_value_rule_and_way_out(kind, steps, options, message):
    with pytest.raises(UsageError, match=message):
        levels(kind, steps, DDPM if kind in ("respaced", "ddim") else EDM, **options)


def test_an_option_of_none_is_the_default():
    assert torch.equal(levels("karras", 5, EDM, rho=None), levels("karras", 5, EDM))
