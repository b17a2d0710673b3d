"""Zero-shot methods against recorded runs of the released codes, all of which know the prior."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from diffit.errors import UsageError
from diffit.restoration import METHODS, check_fits
from diffit.restoration.ddnm import ddnm, visited
from diffit.restoration.ddrm import ddrm
from diffit.restoration.diffpir import diffpir
from diffit.restoration.dps import dps
from diffit.restoration.operators import (
    BlurDecimation,
    CircularBlur,
    Mask,
    PhaseRetrieval,
    Quantise,
    ReflectBlur,
    SpectralOperator,
    average_pooling,
)
from oracle import Correlated

FIXTURES = Path(__file__).parent.parent / "fixtures"


class Dense(SpectralOperator):
    """Any matrix, with the singular value decomposition of LAPACK."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        self.shape, self.measured = shape, (len(matrix),)
        u, s, vt = torch.linalg.svd(matrix)
        self.singulars = torch.zeros(len(vt), dtype=torch.float64)
        self.singulars[: len(s)] = torch.where(s > 1e-9, s, 0.0)
        self._u, self._vt = u, vt

    def vt(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._vt.T

    def v(self, z: Tensor) -> Tensor:
        return (z @ self._vt).reshape(len(z), *self.shape)

    def ut(self, y: Tensor) -> Tensor:
        wide = y.new_zeros(len(y), len(self.singulars))
        wide[:, : len(self._u)] = y @ self._u
        return wide * (self.singulars > 0)

    def u(self, z: Tensor) -> Tensor:
        return z[:, : len(self._u)] @ self._u.T


def recorded(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / f"restoration_{name}.safetensors")


def prior(table: dict[str, Tensor], shape: tuple[int, ...]) -> Correlated:
    rho, c, variance = table["prior_cov_params"].tolist()
    places = torch.arange(shape[1], dtype=torch.float64)
    line = rho ** (places[:, None] - places).abs()
    channels = (1 - c) * torch.eye(3, dtype=torch.float64) + c
    covariance = variance * torch.kron(channels, torch.kron(line, line))
    return Correlated(table["prior_mean"].reshape(shape), covariance)


def sigmas_of(table: dict[str, Tensor], times: Tensor) -> Tensor:
    """Levels of decreasing times, and 0."""
    signal = torch.cumprod(1 - table["betas"], 0)[times]
    return torch.cat([(1 / signal - 1).sqrt(), signal.new_zeros(1)])


def replay(draws: Tensor) -> "Noise":
    return Noise(iter(draws))


class Noise:
    def __init__(self, rows: Iterator[Tensor]) -> None:
        self.rows = rows

    def __call__(self) -> Tensor:
        return next(self.rows)


@pytest.mark.parametrize("task", ["inpaint", "sr", "color", "cs", "blur"])
def test_ddrm_is_the_released_one(task: str) -> None:
    table = recorded("ddrm")
    sigmas = sigmas_of(table, table["timesteps"].flip(0))
    eta, eta_b, _ = table["eta"].tolist()
    result = ddrm(
        prior(table, (3, 8, 8)),
        table[f"{task}/y"],
        Dense(table[f"{task}/A"], (3, 8, 8)),
        sigmas,
        noise=replay(table[f"{task}/noise"]),
        sigma_y=float(table["sigma_y"]),
        x=table[f"{task}/xs"][0] * (1 + sigmas[0] ** 2).sqrt(),
        eta=eta,
        eta_b=eta_b,
    )
    assert torch.allclose(result.x, table[f"{task}/xs"][-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("task", ["inpaint", "sr", "color", "cs"])
@pytest.mark.parametrize("run", ["ddnm", "ddnm_plus", "ddnm_travel"])
def test_ddnm_is_the_released_one(task: str, run: str) -> None:
    table = recorded("ddnm")
    if f"{task}/{run}/xs" not in table:
        pytest.skip("not recorded")
    times = table[f"{task}/{run}/times"]
    levels = times[:-1].unique().flip(0)
    sigmas = sigmas_of(table, levels)
    plus = run == "ddnm_plus"
    result = ddnm(
        prior(table, (3, 8, 8)),
        table[f"{task}/y_noisy" if plus else f"{task}/y_clean"],
        Dense(table[f"{task}/A"], (3, 8, 8)),
        sigmas,
        noise=replay(table[f"{task}/{run}/noise"]),
        sigma_y=float(table["sigma_y"]) if plus else 0.0,
        x=table[f"{task}/{run}/xs"][0] * (1 + sigmas[0] ** 2).sqrt(),
        eta=float(table["eta"]),
        travel_length=2 if run == "ddnm_travel" else 1,
        travel_repeat=2 if run == "ddnm_travel" else 1,
        clip=False,
    )
    assert torch.allclose(result.x, table[f"{task}/{run}/xs"][-1], rtol=0, atol=1e-9)
    if not plus:
        assert float(result.consistency.max()) < 1e-6  # type: ignore[union-attr]


def test_time_travel_goes_where_the_released_schedule_goes() -> None:
    table = recorded("ddnm")
    times = table["sr/ddnm_travel/times"]
    order = {int(t): i for i, t in enumerate(times.unique())}
    assert visited(len(order) - 1, 2, 2) == [order[int(t)] for t in times]
    assert visited(3, 1, 1) == [3, 2, 1, 0]


@pytest.mark.parametrize("run", ["clip", "noclip"])
@pytest.mark.parametrize("task", ["inpaint", "sr2", "blur", "phase"])
def test_dps_is_the_released_one(task: str, run: str) -> None:
    table, shape = recorded("dps"), (3, 8, 8)
    operators = {
        "inpaint": lambda: Mask(shape, table["inpaint/mask"][0]),
        "sr2": lambda: average_pooling(shape, 2),
        "blur": lambda: ReflectBlur(shape, table["blur/kernel"]),
        "phase": lambda: PhaseRetrieval(shape),
    }
    sigmas = sigmas_of(table, table["timesteps"].flip(0))
    result = dps(
        prior(table, shape),
        table[f"{task}/y"],
        operators[task](),
        sigmas,
        noise=replay(table[f"{task}/{run}/noise"]),
        x=table[f"{task}/{run}/xs"][0] * (1 + sigmas[0] ** 2).sqrt(),
        zeta=float(table["zeta"]),
        clip=run == "clip",
    )
    bound = 1e-8 if task == "phase" else 1e-9
    assert torch.allclose(result.x, table[f"{task}/{run}/xs"][-1], rtol=0, atol=bound)


@pytest.mark.parametrize("task", ["inpaint", "deblur", "sr"])
def test_diffpir_is_the_released_one(task: str) -> None:
    table, shape = recorded("diffpir"), (3, 16, 16)
    operators = {
        "inpaint": lambda: Mask(shape, table["inpaint/mask"]),
        "deblur": lambda: CircularBlur(shape, table["kernel"]),
        "sr": lambda: BlurDecimation(shape, table["kernel"], 2),
    }
    operator = operators[task]()
    y = 2 * table[f"{task}/y01"] - 1
    # The released code ends at the lowest level, in x_t, and starts from what y looks like.
    sigmas = sigmas_of(table, 999 - table[f"{task}/seq"])[:-1]
    start = table[f"{task}/y01"]
    if task == "sr":
        start = F.interpolate(start, scale_factor=2, mode="bicubic", align_corners=False)
    noise = table[f"{task}/noise"]
    result = diffpir(
        prior(table, shape),
        operator.keep(y) if isinstance(operator, Mask) else y,
        operator,
        sigmas,
        noise=replay(noise[2::2]),  # between them lies that of eta, which is 0
        sigma_y=2 * float(table[f"{task}/sigma_used"]),
        x=2 * start - 1 + sigmas[0] * noise[0],
        weight=float(table["lambda"]),
        zeta=float(table["zeta"]),
    )
    found = result.x / (1 + sigmas[-1] ** 2).sqrt()
    assert torch.allclose(found, table[f"{task}/xs"][-1], rtol=0, atol=1e-7)


def test_diffpir_draws_the_noise_that_eta_asks_for() -> None:
    """With eta 1 and zeta 0 each step is DDPM's: its kept and its drawn noise make up the level."""
    shape, sigmas = (1, 8, 8), torch.tensor([2.0, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn((4000, *shape), generator=generator, dtype=torch.float64)
    result = diffpir(
        lambda x, sigma: torch.zeros_like(x),
        torch.zeros(4000, *shape, dtype=torch.float64),
        Mask(shape, torch.zeros(8, 8)),
        sigmas,
        noise=lambda: torch.randn(x.shape, generator=generator, dtype=torch.float64),
        x=x,
        zeta=0.0,
        eta=1.0,
    )
    share = float((result.x * x).mean() / x.square().mean()) * 2  # of the noise that was there
    assert abs(float(result.x.std()) - 1) < 0.01
    assert abs(share - 0.5) < 0.01  # sqrt(1 - drawn^2), drawn^2 = 3/4: (1 - 1/4) of DDPM


@pytest.mark.parametrize("name", ["ddrm", "ddnm", "diffpir", "dps"])
@pytest.mark.parametrize("task", ["sr", "color", "cs"])
def test_samples_gather_around_the_exact_posterior_mean(name: str, task: str) -> None:
    """The mean of 64 samples lies nearer to the posterior mean than A+ y and the prior mean do.

    None of the methods is exact, and 64 samples leave an eighth of the posterior's deviation: half
    of either distance is what all must reach. DPS, whose step size stands for the noise of y and
    for 1000 steps, must reach four fifths in its 100.
    """
    table = recorded("ddrm")
    operator, shape = Dense(table[f"{task}/A"], (3, 8, 8)), (64, 3, 8, 8)
    y, exact = table[f"{task}/y"][:1], table[f"{task}/posterior_mean"][0]
    generator = torch.Generator().manual_seed(0)
    every = 10 if name == "dps" else 25
    result = METHODS[name].run(
        prior(table, (3, 8, 8)),
        y.expand(64, -1),
        operator,
        sigmas_of(table, torch.arange(999, 0, -every)),
        noise=lambda: torch.randn(shape, generator=generator, dtype=torch.float64),
        sigma_y=float(table["sigma_y"]),
        **({"zeta": 1.0} if name == "dps" else {}),
    )
    error = float((result.x.mean(0) - exact).square().mean().sqrt())
    naive = float((operator.pinv(y)[0] - exact).square().mean().sqrt())
    blind = float((table["prior_mean"].reshape(3, 8, 8) - exact).square().mean().sqrt())
    assert error < min(naive, blind) * (0.8 if name == "dps" else 0.5)


def test_what_a_method_cannot_do_is_refused_with_those_that_can() -> None:
    bits = Quantise((3, 8, 8), 3)
    with pytest.raises(UsageError, match="ddrm needs a linear operator; take dps"):
        check_fits("ddrm", bits, latent=False, sigma_y=0.0)
    with pytest.raises(UsageError, match="take latent-dps"):
        check_fits("dps", bits, latent=True, sigma_y=0.0)
    check_fits("ddnm", CircularBlur((3, 8, 8), torch.ones(3, 3)), latent=False, sigma_y=0.1)
