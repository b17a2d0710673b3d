"""RePaint, PiGDM, ILVR, CCDF, RED-diff and latents: recorded runs, and what is known exactly."""

import math

import pytest
import torch
from test_zero_shot import Dense, prior, recorded, replay, sigmas_of
from torch import Tensor, nn

from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import (
    DDPMConfig,
    EDMConfig,
    FlowConfig,
    FormulationConfig,
    SubVPConfig,
    VEConfig,
    VPConfig,
    build_formulation,
)
from diffit.errors import UsageError
from diffit.restoration import METHODS, check_fits
from diffit.restoration.operators import CircularBlur, Jpeg, Mask, PhaseRetrieval, average_pooling
from diffit.restoration.pigdm import pigdm
from diffit.restoration.repaint import repaint, visited
from oracle import Gaussian

SHAPE = (3, 8, 8)
LINEAR = [name for name, row in METHODS.items() if not {"mask", "latent"} & set(row.needs)]


def test_repaint_is_the_released_one():
    table = recorded("repaint")
    sigmas = sigmas_of(table, torch.arange(19, -1, -1))
    assert [level - 1 for level in visited(20, 3, 3)] == table["times"].tolist()
    result = repaint(
        prior(table, SHAPE),
        table["mask"] * table["x0"],
        Mask(SHAPE, table["mask"]),
        sigmas,
        noise=replay(table["noise"]),
        x=table["x_T"] * (1 + sigmas[0] ** 2).sqrt(),
        jump_length=3,
        jump_repeat=3,
        paste_known=False,
    )
    assert result.nfe == len(table["x0_preds"])
    assert torch.allclose(result.x, table["samples"][-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("run", ["adaptive", "non_adaptive"])
@pytest.mark.parametrize("task", ["inpaint", "sr", "color"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_pigdm_is_the_released_one(task, run, dtype, bound):
    table = recorded("pigdm")
    oracle = prior(table, SHAPE)
    result = pigdm(
        lambda x, sigma: oracle(x, sigma).to(x.dtype),
        table[f"{task}/y"].to(dtype),
        Dense(table[f"{task}/A"].to(dtype), SHAPE),
        sigmas_of(table, table["timesteps"].flip(0)),
        noise=replay(table[f"{task}/{run}/noise"].to(dtype)),
        eta=float(table["eta"]),
        adaptive=run == "adaptive",
    )
    assert torch.allclose(result.x.double(), table[f"{task}/{run}/xs"][-1], rtol=0, atol=bound)
    assert float(result.consistency.max()) < 2e-2


class Unit:
    """Unit draws from one generator."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(0)

    def __call__(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)


def karras(steps: int, high: float = 20.0, low: float = 0.01) -> Tensor:
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    return torch.cat([levels, levels.new_zeros(1)])


def test_masks_of_independent_pixels_leave_the_prior_where_nothing_is_known():
    """Unknown pixels know nothing of the known ones, so that their law is the prior, mean 0.3 and
    deviation 0.7: 4,000 pixels give it to 0.05, five standard errors, and the discrete steps of
    each method move the deviation by less. DDNM and DiffPIR draw another noise than DDPM, and make
    no such promise."""
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    shape = (1, 8, 8)
    oracle, y = Gaussian(), torch.full((128, *shape), -0.5, dtype=torch.float64) * mask
    for name in ("repaint", "ilvr", "pigdm"):
        row = METHODS[name]
        options = {**row.options, "clip": False}
        result = row.run(
            oracle, y, Mask(shape, mask), karras(60), noise=Unit(128, *shape), **options
        )
        free = result.x[..., 4:]
        assert abs(float(free.mean()) - 0.3) < 0.06, name
        assert abs(float(free.std()) - 0.7) < 0.06, name
        assert torch.allclose(result.x[..., :4], y[..., :4], rtol=0, atol=2e-2), name


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [("ilvr", {}, 0.5), ("red-diff", {}, 0.5), ("pigdm", {}, 0.7), ("ccdf", {"start": 4.0}, 0.7)],
)
@pytest.mark.parametrize("task", ["sr", "color", "inpaint"])
def test_results_gather_around_the_exact_posterior_mean(name, options, share, task):
    """Noiseless measurements of the correlated Gaussian: the mean of 64 samples (of RED-diff the
    one optimum) lies nearer to the posterior mean than a share of the way to A+ y, the naive
    estimate, and to the mean of the prior; 64 samples leave an eighth of a deviation. PiGDM takes
    the posterior at each level for a round one, and CCDF starts from the naive estimate, at a
    level at which it still shows: they get less far."""
    table = recorded("ddrm")
    operator = Dense(table[f"{task}/A"], SHAPE)
    oracle = prior(table, SHAPE)
    y = operator(table["x0"][:1].double())
    exact = posterior_mean(oracle, operator, y)
    row = METHODS[name]
    result = row.run(
        oracle, y.expand(64, -1), operator, karras(100), noise=Unit(64, *SHAPE),
        **{**row.options, "clip": False, **options},
    )  # fmt: skip
    error = rms(result.x.mean(0) - exact)
    naive, blind = rms(operator.pinv(y)[0] - exact), rms(oracle.mean - exact)
    assert error < share * min(naive, blind)


def posterior_mean(oracle, operator: Dense, y: Tensor) -> Tensor:
    """E[x | A x = y] of a Gaussian."""
    covariance = oracle.axes @ torch.diag(oracle.variances) @ oracle.axes.T
    matrix = torch.stack([operator(e.reshape(1, *SHAPE))[0] for e in torch.eye(192).double()], 1)
    gain = covariance @ matrix.T @ torch.linalg.pinv(matrix @ covariance @ matrix.T)
    gap = y[0] - matrix @ oracle.mean.flatten()
    return oracle.mean + (gain @ gap).reshape(SHAPE)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


FORMULATIONS = (
    DDPMConfig(learned_variance=False),
    DDPMConfig(predict="v", learned_variance=False),
    VPConfig(),
    SubVPConfig(),
    VEConfig(),
    EDMConfig(),
    FlowConfig(),
)


class Predicting(nn.Module):
    """A network in a formulation, whose prediction is the one that makes D exact."""

    def __init__(self, config: FormulationConfig) -> None:
        super().__init__()
        self.register_buffer("precision", torch.zeros((), dtype=torch.float64))
        self.denoiser = [Denoiser(self, build_formulation(config))]
        self.sigma = torch.zeros(())

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        skip, out, inp, _ = self.denoiser[0].formulation.scalings(self.sigma)
        return (Gaussian()(x / inp, self.sigma) - skip * x / inp) / out

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.sigma = sigma
        return self.denoiser[0](x, sigma)


@pytest.mark.parametrize("name", LINEAR)
def test_what_a_network_predicts_changes_no_result(name):
    """The same score as noise, v, score, velocity or EDM's residual: the same images to 1e-6."""
    shape, row = (1, 8, 8), METHODS[name]
    operator = average_pooling(shape, 2)
    y = operator(Gaussian().draw((2, *shape), torch.Generator().manual_seed(1)))
    results = []
    for config in FORMULATIONS:
        denoiser = Predicting(config).denoise
        sigmas = karras(6, high=5.0, low=0.1)
        result = row.run(
            denoiser, y, operator, sigmas, noise=Unit(2, *shape), sigma_y=0.1, **row.options
        )
        results.append(result.x)
    for other in results[1:]:
        assert torch.allclose(other, results[0], rtol=0, atol=1e-6)


def test_jpeg_is_restored_by_its_decoder():
    shape = (3, 16, 16)
    operator = Jpeg(shape, 20)
    clean = Gaussian(0.0, 0.3).draw((2, *shape), torch.Generator().manual_seed(0))
    y = operator(clean)
    result = pigdm(Gaussian(0.0, 0.3), y, operator, karras(20), noise=Unit(2, *shape))
    assert rms(result.x - operator.pinv(y)) < 1.0
    assert math.isfinite(float(result.consistency.max()))


def test_latents_are_found_through_the_decoder():
    """Decoder 2 z, a mask that shows half: shown pixels come nearer to y than the prior's."""
    shape = (1, 4, 4)
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    operator, y = Mask(shape, mask), torch.full((1, *shape), 0.8, dtype=torch.float64) * mask
    result = METHODS["latent-dps"].run(
        Gaussian(0.0, 0.25), y, operator, karras(200), noise=Unit(1, *shape),
        decode=lambda z: 2 * z, zeta=0.3,
    )  # fmt: skip
    shown = (result.x[0, 0, :2] - 0.8).abs().mean()
    assert float(shown) < 0.2  # 0.8 of the prior's mean
    assert float(result.consistency[0]) < 0.2


def test_options_that_make_no_sense_are_refused():
    shape = (1, 8, 8)
    y, noise = torch.zeros(1, *shape), Unit(1, *shape)
    mask = Mask(shape, torch.ones(8, 8))
    for name, options, said in (
        ("repaint", {"jump_length": 0}, "must be 1 or more"),
        ("ilvr", {"until": 1.0}, "at least 0 and less than 1"),
        ("ccdf", {"start": 0.001}, "no noise level lies between"),
        ("red-diff", {"rate": 0.0}, "above 0"),
    ):
        with pytest.raises(UsageError, match=said):
            METHODS[name].run(Gaussian(), y, mask, karras(5), noise=noise, **options)


def test_what_fits_is_named():
    shape = (1, 8, 8)
    phases = PhaseRetrieval(shape)
    with pytest.raises(UsageError, match=r"repaint is for inpainting; take ddrm, ddnm"):
        check_fits("repaint", average_pooling(shape, 2), latent=False, sigma_y=0)
    with pytest.raises(UsageError, match=r"latent-dps works on latents, .* take ddrm"):
        check_fits("latent-dps", CircularBlur(shape, torch.ones(3, 3)), latent=False, sigma_y=0)
    with pytest.raises(UsageError, match=r"ddnm works on pixels, .* take latent-dps"):
        check_fits("ddnm", phases, latent=True, sigma_y=0)
    check_fits("red-diff", phases, latent=False, sigma_y=0)
