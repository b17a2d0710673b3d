"""Formulations: what a network sees and predicts at a noise level, and which levels train it.

Each is one row of the table in `diffit.diffusion.scalings`, chosen by the `name` of its settings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from diffit.config import Settings
from diffit.diffusion import laws
from diffit.diffusion.bridge import (
    IRSDE,
    Bridge,
    InDI,
    InDIConfig,
    IRSDEConfig,
    ResShift,
    ResShiftConfig,
)
from diffit.diffusion.laws import Law
from diffit.diffusion.scalings import (
    Coefficients,
    Scalings,
    preconditioned,
    predicts_noise,
    predicts_score,
    predicts_v,
    predicts_velocity,
)

ContinuousTime = Literal["t", "1-t", "999t", "1000t", "log4", "log2", "log_snr"]
DiscreteTime = Literal[
    "index", "index1", "dimr", "t", "1-t", "999t", "1000t", "log4", "log2", "log_snr"
]

TIMES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "index": lambda law, sigma: law.index(sigma),
    "index1": lambda law, sigma: law.index(sigma) + 1,
    "dimr": lambda law, sigma: 8 * (law.index(sigma) + 1) / 1000 - 4,
    "t": lambda law, sigma: law.t(sigma),
    "1-t": lambda law, sigma: 1 - law.t(sigma),
    "999t": lambda law, sigma: 999 * law.t(sigma),
    "1000t": lambda law, sigma: 1000 * law.t(sigma),
    "log4": lambda law, sigma: sigma.log() / 4,
    "log2": lambda law, sigma: (sigma / 2).log(),
    "log_snr": lambda law, sigma: -2 * sigma.log(),
}
"""What networks are told of the noise level; the checkpoint's config says which it was."""


@dataclass(frozen=True, eq=False)
class Formulation:
    """One row of the table: pure elementwise functions of sigma, in float64.

    Attributes:
        name: the row.
        law: sigma as a function of the method's own time.
        coefficients: sigma to (skip, out, inp).
        time_kind: key of `TIMES`.
        density: u in (0, 1) to the time t that training draws.
        natural: level list that the method's authors sample along.
        sigma_min: lowest level above 0 of a level list, unless one asks for another.
        sigma_max: highest level of a level list, unless one asks for another.
        betas: (T,) the variances added by each published discrete step, where there are any.
        learned_variance: the network's second half of channels interpolates a log variance.
        shift: share of the degraded image in what the network sees at sigma, beside inp * x.
        bridge: of methods whose x is the state between clean and degraded image, not clean +
            sigma * noise, and whose level is its time; samplers know nothing of them.
    """

    name: str
    law: Law
    coefficients: Coefficients
    time_kind: str
    density: Callable[[Tensor], Tensor]
    natural: str
    sigma_min: float
    sigma_max: float
    betas: Tensor | None = None
    learned_variance: bool = False
    shift: Callable[[Tensor], Tensor] | None = None
    bridge: Bridge | None = None

    @property
    def restores(self) -> bool:
        """Whether the process itself leads from a degraded image to a clean one."""
        return self.shift is not None or self.bridge is not None

    @property
    def levels(self) -> Tensor | None:
        """(T,) increasing: the only sigmas the network was trained on, None if there are more."""
        return self.law.levels if isinstance(self.law, laws.Discrete) else None

    def scalings(self, sigma: Tensor) -> Scalings:
        """Coefficients of D at each level; ValueError where sigma is 0."""
        _refuse_zero(sigma)
        return Scalings(*self.coefficients(sigma), self.time(sigma))

    def time(self, sigma: Tensor) -> Tensor:
        """What the network is told of the level."""
        return TIMES[self.time_kind](self.law, sigma)

    def training_sigma(self, u: Tensor) -> Tensor:
        """u uniform in the open interval (0, 1), float64, to a training level."""
        return self.law.sigma(self.density(u))

    def progress(self, sigma: Tensor) -> Tensor:
        """0 where sampling starts, 1 where the noise is gone."""
        return self.law.progress(sigma)

    def signal(self, sigma: Tensor) -> Tensor:
        """a of the published state x_t = a * x."""
        return self.law.signal(sigma)

    def prior_std(self, sigma: Tensor) -> Tensor:
        """Sampling starts at x = prior_std(sigmas[0]) * noise."""
        return self.law.prior_std(sigma)

    def beta(self, index: Tensor) -> Tensor:
        """Variance that the published discrete step ``index`` (0 .. T - 1, int64) adds to x_t."""
        if self.betas is None:
            raise ValueError(f"formulation {self.name} has no beta: its steps add no such variance")
        return self.betas.to(index.device)[index]


class DDPMConfig(Settings):
    """Denoising diffusion on discrete steps (arXiv:2006.11239): DiffiT and DiT in latent space."""

    name: Literal["ddpm"] = "ddpm"
    predict: Literal["eps", "v"] = "eps"
    """What the network predicts: the noise, or v = a noise - sqrt(1 - a^2) clean."""
    schedule: Literal["linear", "cosine", "scaled-linear"] = "linear"
    """How beta grows: linear (DDPM, DiT), cosine (IDDPM), scaled-linear (Stable Diffusion)."""
    steps: int = Field(default=1000, ge=2, le=100_000)
    """Number of discrete noise levels."""
    learned_variance: bool = True
    """The network also predicts the variance of each ancestral step (needs 2 C channels)."""
    interpolation: Literal["sigma", "alpha"] = "sigma"
    """Between levels the index is linear in log sigma, or in log alpha (U-ViT, DiMR)."""
    time: DiscreteTime = "index"
    """What the network is told of the noise level."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.schedule == "linear" and self.steps <= 20:
            raise ValueError(f"steps is {self.steps}; the linear schedule needs more than 20")
        return self


class VPConfig(Settings):
    """Variance-preserving SDE (arXiv:2011.13456)."""

    name: Literal["vp"] = "vp"
    beta_min: PositiveFloat = 0.1
    """beta(0)."""
    beta_max: PositiveFloat = 20.0
    """beta(1)."""
    t_min: float = Field(default=1e-5, gt=0, lt=1)
    """Training draws t uniformly from t_min to 1."""
    time: ContinuousTime = "999t"
    """What the network is told of the noise level."""

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_order("beta", self.beta_min, self.beta_max)
        return self


class SubVPConfig(Settings):
    """Sub-variance-preserving SDE (arXiv:2011.13456)."""

    name: Literal["subvp"] = "subvp"
    beta_min: PositiveFloat = 0.1
    """beta(0)."""
    beta_max: PositiveFloat = 20.0
    """beta(1)."""
    t_min: float = Field(default=1e-5, gt=0, lt=1)
    """Training draws t uniformly from t_min to 1."""
    time: ContinuousTime = "999t"
    """What the network is told of the noise level."""

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_order("beta", self.beta_min, self.beta_max)
        return self


class VEConfig(Settings):
    """Variance-exploding SDE (arXiv:2011.13456), sigma log-uniform."""

    name: Literal["ve"] = "ve"
    sigma_min: PositiveFloat = 0.02
    """Lowest level; the published 0.01 belongs to pixels in [0, 1], these are in [-1, 1]."""
    sigma_max: PositiveFloat = 100.0
    """Highest level; about the largest distance between two images."""
    time: ContinuousTime = "log2"
    """What the network is told of the noise level."""

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_order("sigma", self.sigma_min, self.sigma_max)
        return self


class EDMConfig(Settings):
    """Preconditioned denoiser of EDM (arXiv:2206.00364): DiffiT in image space."""

    name: Literal["edm"] = "edm"
    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the clean images."""
    mean: float = -1.2
    """Training draws ln sigma from N(mean, std^2)."""
    std: PositiveFloat = 1.2
    """Training draws ln sigma from N(mean, std^2)."""
    sigma_min: PositiveFloat = 0.002
    """Lowest level of sampling."""
    sigma_max: PositiveFloat = 80.0
    """Highest level of sampling."""
    time: Literal["log4", "log2", "log_snr"] = "log4"
    """What the network is told of the noise level."""

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_order("sigma", self.sigma_min, self.sigma_max)
        return self


class FlowConfig(Settings):
    """Flow matching on straight paths (arXiv:2210.02747), also called rectified flow."""

    name: Literal["flow"] = "flow"
    density: Literal["uniform", "logit-normal"] = "uniform"
    """How training draws t: uniformly, or as SD3 (arXiv:2403.03206)."""
    mean: float = 0.0
    """Mean of the logit of t, for logit-normal."""
    std: PositiveFloat = 1.0
    """Standard deviation of the logit of t, for logit-normal."""
    t_max: float = Field(default=0.999, gt=0.5, lt=1)
    """Sampling starts here: at t = 1 sigma would be infinite."""
    time: ContinuousTime = "t"
    """What the network is told of the noise level."""


FormulationConfig = Annotated[
    DDPMConfig
    | VPConfig
    | SubVPConfig
    | VEConfig
    | EDMConfig
    | FlowConfig
    | IRSDEConfig
    | ResShiftConfig
    | InDIConfig,
    Field(discriminator="name"),
]


def build_formulation(config: FormulationConfig) -> Formulation:
    """The row of the table that a config names."""
    match config:
        case DDPMConfig():
            return _ddpm(config)
        case VPConfig() | SubVPConfig():
            return _score_sde(config)
        case VEConfig():
            return _ve(config)
        case EDMConfig():
            return _edm(config)
        case FlowConfig():
            return _flow(config)
        case IRSDEConfig():
            return _ir_sde(config)
        case ResShiftConfig():
            return _bridge(config, ResShift.of(config))
        case InDIConfig():
            return _bridge(config, InDI(config.noise))


def _ddpm(config: DDPMConfig) -> Formulation:
    make = {
        "linear": laws.linear_betas,
        "cosine": laws.cosine_betas,
        "scaled-linear": laws.scaled_linear_betas,
    }
    law = laws.Discrete(make[config.schedule](config.steps), config.interpolation)
    return Formulation(
        name="ddpm",
        law=law,
        coefficients=predicts_v if config.predict == "v" else partial(predicts_noise, law),
        time_kind=config.time,
        density=partial(_pick_step, steps=config.steps),
        natural="respaced",
        sigma_min=float(law.levels[0]),
        sigma_max=float(law.levels[-1]),
        betas=law.betas,
        learned_variance=config.learned_variance,
    )


def _score_sde(config: VPConfig | SubVPConfig) -> Formulation:
    kind = laws.VP if isinstance(config, VPConfig) else laws.SubVP
    law = kind(config.beta_min, config.beta_max)
    # 1e-3 is where the authors end sampling; training goes further down.
    ends = law.sigma(torch.tensor([1e-3, 1.0], dtype=torch.float64))
    return Formulation(
        name=config.name,
        law=law,
        coefficients=partial(predicts_noise, law),
        time_kind=config.time,
        density=partial(_stretch, low=config.t_min),
        natural="uniform",
        sigma_min=float(ends[0]),
        sigma_max=float(ends[1]),
        # The published discretisation in N = 1000 steps: beta(t) / N, t from 0 to 1.
        betas=torch.linspace(config.beta_min, config.beta_max, 1000, dtype=torch.float64) / 1000,
    )


def _ve(config: VEConfig) -> Formulation:
    return Formulation(
        name="ve",
        law=laws.VE(config.sigma_min, config.sigma_max),
        coefficients=predicts_score,
        time_kind=config.time,
        density=_same,
        natural="log-uniform",
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
    )


def _edm(config: EDMConfig) -> Formulation:
    return Formulation(
        name="edm",
        law=laws.LogNormal(config.mean, config.std),
        coefficients=partial(preconditioned, data=config.sigma_data),
        time_kind=config.time,
        density=_same,
        natural="karras",
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
    )


def _flow(config: FlowConfig) -> Formulation:
    normal = partial(_logit_normal, mean=config.mean, std=config.std)
    return Formulation(
        name="flow",
        law=laws.Flow(),
        coefficients=predicts_velocity,
        time_kind=config.time,
        density=normal if config.density == "logit-normal" else _same,
        natural="flow",
        sigma_min=(1 - config.t_max) / config.t_max,
        sigma_max=config.t_max / (1 - config.t_max),
    )


def _ir_sde(config: IRSDEConfig) -> Formulation:
    process = IRSDE.of(config)
    law = laws.Discrete(process.betas, scale=process.scale)
    return Formulation(
        name="ir-sde",
        law=law,
        coefficients=partial(predicts_noise, law),
        time_kind=config.time,
        density=partial(_pick_step, steps=config.steps),
        natural="respaced",
        sigma_min=float(law.levels[0]),
        sigma_max=float(law.levels[-1]),
        betas=law.betas,
        shift=lambda sigma: 1 - law.signal(sigma),
    )


def _bridge(config: ResShiftConfig | InDIConfig, bridge: Bridge) -> Formulation:
    steps = bridge.steps
    return Formulation(
        name=config.name,
        law=laws.Bridge(),
        coefficients=bridge.coefficients,
        time_kind=config.time,
        density=_same if steps is None else partial(_pick_step, steps=steps),
        natural="uniform",
        sigma_min=1e-3 if steps is None else 1 / steps,
        sigma_max=1.0,
        bridge=bridge,
    )


def _same(u: Tensor) -> Tensor:
    return u


def _stretch(u: Tensor, *, low: float) -> Tensor:
    return low + (1 - low) * u


def _pick_step(u: Tensor, *, steps: int) -> Tensor:
    """u to the time (k + 1) / T of a step k, each equally likely."""
    return ((u * steps).floor() + 1) / steps


def _logit_normal(u: Tensor, *, mean: float, std: float) -> Tensor:
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def _refuse_zero(sigma: Tensor) -> None:
    # On an accelerator the look would stall its queue; samplers and loops keep sigma on the CPU.
    if sigma.device.type == "cpu" and not torch.compiler.is_compiling() and (sigma <= 0).any():
        raise ValueError(
            f"sigma is {sigma.min().item():g}; the estimate needs noise: at level 0 x is clean "
            "already, so end there without asking the network"
        )


def _check_order(what: str, low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"{what}_min ({low:g}) must be below {what}_max ({high:g})")
