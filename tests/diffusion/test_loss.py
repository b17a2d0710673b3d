"""The one loss equals each paper's own; the bound and the weights follow their formulas."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from conftest import FIXTURES
from diffit.convert import from_reference
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
from diffit.diffusion.loss import (
    LOSS_WEIGHTS,
    coarser,
    denoising_loss,
    network_target,
    variational_bound,
)

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


@pytest.fixture(scope="module")
def dimr():
    with safe_open(FIXTURES / "dimr_tiny.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(("side", "grids"), [(8, {2: 4, 4: 2}), (9, {2: 5, 4: 3})])
def test_coarser_targets_are_those_of_dimr(dimr, side, grids):
    noise = dimr[f"targets.{side}.noise"]
    for edge, grid in grids.items():
        expected = dimr[f"targets.{side}.sum_over_k.{grid}"]
        torch.testing.assert_close(coarser(noise, edge), expected, rtol=1e-5, atol=1e-6)


def test_coarser_noise_is_white_noise_again():
    torch.manual_seed(0)
    coarse = coarser(torch.randn(4, 3, 256, 256), 4)
    assert coarse.std().item() == pytest.approx(1, abs=0.01)
    neighbours = (coarse[..., 1:] * coarse[..., :-1]).mean().item()
    assert neighbours == pytest.approx(0, abs=0.01)


def test_coarser_commutes_with_every_formulation():
    clean, noise, sigma = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([0.3, 4])
    for config in (EDMConfig(), FlowConfig(), DDPMConfig(predict="v", learned_variance=False)):
        formulation = build_formulation(config)
        fine = network_target(formulation, clean, noise, sigma)
        coarse = network_target(formulation, coarser(clean, 2), coarser(noise, 2), sigma)
        torch.testing.assert_close(coarser(fine, 2), coarse)


def test_what_has_no_blocks_is_refused():
    with pytest.raises(ValueError, match="6 x 6 cannot be made 4 times coarser"):
        coarser(torch.zeros(1, 1, 6, 6), 4)


class Pyramid(torch.nn.Module):
    """Predicts a constant at three resolutions."""

    def __init__(self, *values):
        super().__init__()
        self.values = values

    def pyramid(self, x, time, label=None, image=None, *, augment=None, keys=None):
        edges = [1 << place for place in reversed(range(len(self.values)))]
        pairs = zip(self.values, edges, strict=True)
        return [torch.full_like(x[..., ::edge, ::edge], value) for value, edge in pairs]

    def forward(self, x, *rest, **keywords):
        return self.pyramid(x, *rest, **keywords)[-1]


def test_a_pyramid_adds_the_errors_of_its_coarser_predictions():
    denoiser = Denoiser(Pyramid(3.0, 2.0, 1.0), build_formulation(VPConfig()))
    zero, sigma = torch.zeros(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    found = denoising_loss(denoiser, zero, zero, sigma)
    assert found.mse.tolist() == [1, 1]
    assert found.total.tolist() == [9 / 4 + 4 / 2 + 1] * 2
    given = denoising_loss(denoiser, zero, zero, sigma, coarse_weights=[0, 1])
    assert given.total.tolist() == [4 + 1] * 2
    halved = denoising_loss(denoiser, zero, zero, sigma, weight=lambda s: s / s / 2)
    assert halved.total.tolist() == [(9 / 4 + 4 / 2 + 1) / 2] * 2
    with pytest.raises(ValueError, match="1 coarse weights, but the network predicts at 2"):
        denoising_loss(denoiser, zero, zero, sigma, coarse_weights=[1])


def test_loss_of_a_dimr_is_the_references(dimr):
    with safe_open(FIXTURES / "dimr_tiny.safetensors", "pt") as file:
        args = json.loads(file.metadata()["constructor"])
    weights = {n.removeprefix("model."): t for n, t in dimr.items() if n.startswith("model.")}
    formulation = build_formulation(
        DDPMConfig(
            schedule="scaled-linear", learned_variance=False, interpolation="alpha", time="dimr"
        )
    )
    denoiser = Denoiser(from_reference("dimr", weights, args), formulation)
    sigma = formulation.levels[dimr["loss.n"] - 1]
    torch.testing.assert_close(formulation.time(sigma).float(), dimr["loss.log_snr"])
    clean, noise = dimr["loss.x0"], dimr["loss.eps"]
    signal = formulation.signal(sigma).float()[:, None, None, None]
    state = signal * (clean + sigma.float()[:, None, None, None] * noise)
    torch.testing.assert_close(state, dimr["loss.x_n"], rtol=1e-5, atol=1e-5)
    for side, edge in ((8, 1), (4, 2)):
        torch.testing.assert_close(coarser(noise, edge), dimr[f"loss.target.{side}"])
    with torch.no_grad():
        found = denoising_loss(denoiser, clean, noise, sigma, dimr["loss.y"])
    torch.testing.assert_close(found.total, dimr["loss.value"], rtol=1e-5, atol=1e-6)
