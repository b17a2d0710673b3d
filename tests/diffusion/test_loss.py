"""The one loss equals each paper's own; the bound and the weights follow their formulas."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import FIXTURES
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import (
    DDPMConfig,
    EDMConfig,
    FlowConfig,
    SubVPConfig,
    VEConfig,
    VPConfig,
    build_formulation,
)
from diffit.diffusion.loss import LOSS_WEIGHTS, denoising_loss, network_target, variational_bound

ROWS = {
    "eps": build_formulation(DDPMConfig(learned_variance=False)),
    "v": build_formulation(DDPMConfig(predict="v", learned_variance=False)),
    "vp": build_formulation(VPConfig()),
    "subvp": build_formulation(SubVPConfig()),
    "ve": build_formulation(VEConfig()),
    "edm": build_formulation(EDMConfig()),
    "flow": build_formulation(FlowConfig()),
}
LEARNED = build_formulation(DDPMConfig())


class Analytic(nn.Module):
    """The analytic network of the recorded diffusion runs; half its channels on request."""

    def __init__(self, *, learned=True):
        super().__init__()
        self.learned = learned

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        noise = 0.5 * x + 0.1 * torch.sin(time / 100)[:, None, None, None]
        return torch.cat([noise, torch.tanh(x)], 1) if self.learned else noise


class Sine(nn.Module):
    """The analytic network of the recorded EDM runs."""

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        return torch.sin(x + time[:, None, None, None])


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "gaussian_diffusion.safetensors")


def column(values):
    return values.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ROWS)
def test_target_is_what_the_paper_trains(name):
    row = ROWS[name]
    generator = torch.manual_seed(0)
    clean = torch.rand(9, 2, 3, 3, dtype=torch.float64, generator=generator) * 2 - 1
    noise = torch.randn(9, 2, 3, 3, dtype=torch.float64, generator=generator)
    sigma = torch.logspace(-2.5, 2.9, 9, dtype=torch.float64)
    signal = column((1 + sigma**2).rsqrt())
    x = clean + column(sigma) * noise
    papers = {
        "eps": noise,
        "v": signal * noise - (1 - signal**2).sqrt() * clean,
        "vp": noise,
        "subvp": noise,
        "ve": -noise,
        # EDM's F, whose weighted error its loss is: (clean - skip x) / out.
        "edm": (clean - 0.25 / (column(sigma) ** 2 + 0.25) * x)
        * ((column(sigma) ** 2 + 0.25).sqrt() / (0.5 * column(sigma))),
        "flow": noise - clean,
    }
    torch.testing.assert_close(network_target(row, clean, noise, sigma), papers[name])


def test_target_keeps_its_digits_at_small_levels_in_float32():
    clean, noise = torch.rand(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    sigma = torch.full((4,), 1e-3, dtype=torch.float64)
    for row in ROWS.values():
        exact = network_target(row, clean.double(), noise.double(), sigma)
        rounded = network_target(row, clean, noise, sigma)
        torch.testing.assert_close(rounded.double(), exact, atol=1e-6, rtol=1e-6)


class Smooth(nn.Module):
    """An arbitrary smooth network without precision of its own."""

    def __init__(self, dtype):
        super().__init__()
        self.register_buffer("precision", torch.zeros((), dtype=dtype))

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        return 0.7 * torch.tanh(0.5 * x)


@pytest.mark.parametrize("name", ROWS)
def test_loss_in_float32_is_exact_from_a_thousandth_to_a_thousand(name):
    generator = torch.manual_seed(0)
    clean = torch.rand(9, 2, 6, 6, dtype=torch.float64, generator=generator) * 2 - 1
    noise = torch.randn(9, 2, 6, 6, dtype=torch.float64, generator=generator)
    sigma = torch.logspace(-3, 3, 9, dtype=torch.float64)
    exact = denoising_loss(Denoiser(Smooth(torch.float64), ROWS[name]), clean, noise, sigma)
    single = Denoiser(Smooth(torch.float32), ROWS[name])
    loss = denoising_loss(single, clean.float(), noise.float(), sigma)
    torch.testing.assert_close(loss.total.double(), exact.total, rtol=1e-5, atol=0)


def test_loss_is_edms_weighted_error():
    recorded = load_file(FIXTURES / "edm_sampler.safetensors")
    images, noise, sigma = (recorded[f"loss.{name}"] for name in ("images", "noise", "sigma"))
    loss = denoising_loss(Denoiser(Sine(), ROWS["edm"]), images, noise, sigma)
    expected = recorded["loss.value"].flatten(1).mean(1)
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.total.mean()[None], recorded["loss.mean"], rtol=1e-5, atol=0)
    assert loss.bound is None
    drawn = (-1.2 + 1.2 * recorded["loss.rnd_normal"].double()).exp().flatten()
    quantile = torch.special.ndtr(recorded["loss.rnd_normal"].double()).flatten()
    torch.testing.assert_close(ROWS["edm"].training_sigma(quantile), drawn, rtol=1e-9, atol=0)


def test_loss_with_learned_variance_is_the_recorded_one(recorded):
    sigma = LEARNED.levels[recorded["q.t"]]
    denoiser = Denoiser(Analytic(), LEARNED)
    loss = denoising_loss(denoiser, recorded["q.x_start"], recorded["q.noise"], sigma)
    torch.testing.assert_close(loss.mse, recorded["train.mse"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(loss.bound, recorded["train.vb"], rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.total, recorded["train.loss"], rtol=1e-4, atol=1e-6)
    # Rescaling multiplies the bound by steps / 1000.
    torch.testing.assert_close(loss.total, recorded["train_rescaled.loss"], rtol=1e-4, atol=1e-6)
    # The bound alone, of all steps.
    torch.testing.assert_close(1000 * loss.bound, recorded["train_kl.loss"], rtol=1e-4, atol=0)


def test_loss_with_fixed_variance_is_the_recorded_one(recorded):
    sigma = ROWS["eps"].levels[recorded["q.t"]]
    denoiser = Denoiser(Analytic(learned=False), ROWS["eps"])
    loss = denoising_loss(denoiser, recorded["q.x_start"], recorded["q.noise"], sigma)
    torch.testing.assert_close(loss.total, recorded["train_fixed.loss"], atol=1e-6, rtol=1e-5)


def test_bound_teaches_the_variance_alone():
    raw = torch.zeros(6, 4, 3, 3, requires_grad=True)
    network = nn.Module()
    network.forward = lambda *_, **__: raw
    clean, noise = torch.rand(6, 2, 3, 3) * 2 - 1, torch.randn(6, 2, 3, 3)
    # Both ends are among them: neither the decoder's likelihood nor the KL may spoil the other.
    sigma = LEARNED.levels[[0, 1, 2, 500, 998, 999]]
    loss = denoising_loss(Denoiser(network, LEARNED), clean, noise, sigma)
    (gradient,) = torch.autograd.grad(loss.bound.sum(), raw)
    assert gradient.isfinite().all()
    assert (gradient[:, :2] == 0).all()
    assert (gradient[:, 2:].flatten(1).norm(dim=1) > 0).all()


def test_bound_of_the_true_posterior_is_zero():
    clean, noise = torch.rand(5, 1, 4, 4).double() * 2 - 1, torch.randn(5, 1, 4, 4).double()
    sigma = LEARNED.levels[[1, 10, 300, 700, 999]]
    target = network_target(LEARNED, clean, noise, sigma)
    bound = variational_bound(LEARNED, clean, noise, sigma, target, torch.zeros_like(target))
    torch.testing.assert_close(bound, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_bound_needs_steps():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="formulation edm has no steps"):
        variational_bound(ROWS["edm"], x, x, torch.ones(1), x, x)


def test_weights_are_the_papers():
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    snr = sigma**-2
    expected = {
        ("min-snr", "eps"): snr.clamp(max=5) / snr,
        ("min-snr", "v"): snr.clamp(max=5) / (snr + 1),
        ("p2", "eps"): 1 / (1 + snr),
        ("none", "eps"): torch.ones_like(sigma),
    }
    for (name, row), weight in expected.items():
        torch.testing.assert_close(LOSS_WEIGHTS[name](ROWS[row])(sigma), weight)
    other = LOSS_WEIGHTS["p2"](ROWS["eps"], k=2.0, gamma=0.5)(sigma)
    torch.testing.assert_close(other, (2 + snr) ** -0.5)
    other = LOSS_WEIGHTS["min-snr"](ROWS["eps"], gamma=1.0)(sigma)
    torch.testing.assert_close(other, snr.clamp(max=1) / snr)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("weight", ["min-snr", "p2"])
def test_weighted_loss_does_not_depend_on_what_is_predicted(name, weight):
    """Min-SNR and P2 weigh the clean image's error, so equal denoisers have equal losses."""
    row, sigma = ROWS[name], torch.tensor([0.05, 0.9, 20.0], dtype=torch.float64)
    clean, noise = torch.rand(3, 1, 4, 4).double(), torch.randn(3, 1, 4, 4).double()
    error = torch.tensor([0.1, 0.2, 0.3]).double()

    def off_by_error(x, time, *_, **__):
        out = row.scalings(sigma).out
        return network_target(row, clean, noise, sigma) + column(error / out)

    network = nn.Module()
    network.register_buffer("precision", torch.zeros((), dtype=torch.float64))
    network.forward = off_by_error
    loss = denoising_loss(
        Denoiser(network, row), clean, noise, sigma, weight=LOSS_WEIGHTS[weight](row)
    )
    snr = sigma**-2
    of_clean = {"min-snr": snr.clamp(max=5), "p2": snr / (1 + snr)}[weight]
    torch.testing.assert_close(loss.total, of_clean * error**2)
    assert not math.isnan(loss.mse.sum())


def test_masked_training_adds_the_loss_of_a_second_pass():
    class Half(nn.Module):
        """Predicts x, or the half of it where something is hidden."""

        def forward(self, x, time, label=None, image=None, *, augment, keys, seen=None):
            return x if seen is None else x * seen.float().mean(1)[:, None, None, None]

    torch.manual_seed(0)
    row = build_formulation(DDPMConfig(learned_variance=False))
    clean, noise = torch.randn(2, 2, 3, 4, 4)
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    seen = torch.tensor([[True, False], [True, True]])
    full = denoising_loss(Denoiser(Half(), row), clean, noise, sigma)
    both = denoising_loss(Denoiser(Half(), row), clean, noise, sigma, seen=seen)
    scaled = (clean + sigma.float()[:, None, None, None] * noise) * (1 + sigma**2).rsqrt()[
        :, None, None, None
    ].float()
    second = ((scaled * torch.tensor([0.5, 1.0])[:, None, None, None] - noise) ** 2).mean((1, 2, 3))
    assert torch.equal(both.mse, full.mse)
    torch.testing.assert_close(both.total, full.total + second)
