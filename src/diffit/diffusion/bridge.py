"""Restoration that starts from the degraded image: ResShift, InDI, and the steps of IR-SDE.

ResShift and InDI lead a state x_t from the clean image at t = 0 to the degraded one at t = 1; with
IR-SDE it is x_t = image + B (clean - image) + noise, in which B falls from 1 to nearly 0. There
``image`` is the degraded image, and the network of ResShift and InDI predicts the clean one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from diffit.config import Settings
from diffit.diffusion.scalings import over, predicts_clean


class Bridge(Protocol):
    """A way from the degraded image to the clean one; t is (B,) or (), float64, in (0, 1]."""

    @property
    def steps(self) -> int | None:
        """Number of its times where they are discrete, i / steps; None where all are."""

    def state(self, clean: Tensor, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of (B, C, H, W) clean and degraded images and unit noise."""

    def start(self, image: Tensor, noise: Tensor) -> Tensor:
        """Where restoration starts, at t = 1."""

    def step(self, x: Tensor, clean: Tensor, t: float, lower: float, noise: Tensor) -> Tensor:
        """x at time ``lower``, given x at t and an estimate of the clean image."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(skip, out, inp) of the denoiser, which estimates the clean image from x_t."""

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) float64, decreasing from 1 to 0."""


class ResShiftConfig(Settings):
    """ResShift (arXiv:2307.12348): the residual is shifted in while noise is added."""

    name: Literal["resshift"] = "resshift"
    steps: int = Field(default=15, ge=2, le=1000)
    """Number of discrete times."""
    kappa: PositiveFloat = 2.0
    """Standard deviation of the noise at the end."""
    power: PositiveFloat = 0.3
    """How the shift grows: below 1 more steps are spent near the degraded image."""
    last: float = Field(default=0.99, gt=0, le=1)
    """Square root of the share of the degraded image at the end."""
    first: PositiveFloat = 0.04
    """Standard deviation of the noise of the first step, where kappa is above 1."""
    time: Literal["t", "999t"] = "999t"
    """What the network is told of the time."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if min(self.first / self.kappa, self.first) >= self.last:
            raise ValueError(f"first {self.first:g} must be below last {self.last:g} times kappa")
        return self


class InDIConfig(Settings):
    """InDI (arXiv:2303.11435): straight from the degraded image to the clean one."""

    name: Literal["indi"] = "indi"
    noise: float = Field(default=0.0, ge=0, le=10)
    """Standard deviation of noise that is added to the degraded image, in units of [-1, 1]: several
    restorations of one image then differ."""
    time: Literal["t", "999t"] = "999t"
    """What the network is told of the time."""


class IRSDEConfig(Settings):
    """IR-SDE (arXiv:2301.11699): a process that returns to the degraded image."""

    name: Literal["ir-sde"] = "ir-sde"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How fast the process returns, over time."""
    steps: int = Field(default=100, ge=2, le=10_000)
    """Number of discrete times."""
    delta: float = Field(default=0.005, gt=0, lt=1)
    """Share of the clean image that is left at the end."""
    noise: PositiveFloat = 20 / 255
    """Standard deviation of the noise at the end; the published 10 of 255 grey levels here, where
    images lie in [-1, 1]."""
    time: Literal["index1", "t", "999t", "log2", "log4"] = "index1"
    """What the network is told of the noise level."""


@dataclass(frozen=True, eq=False)
class ResShift:
    """x_t = clean + eta_t (image - clean) + kappa sqrt(eta_t) noise (arXiv:2307.12348, Eq. 2).

    Attributes:
        etas: (T,) float64, increasing: the share of the degraded image at the times 1/T ... 1.
        kappa: standard deviation of the noise at a share of 1.
    """

    etas: Tensor
    kappa: float

    @classmethod
    def of(cls, config: ResShiftConfig) -> Self:
        """The schedule of the paper (Eq. 8): geometric in a power of the time."""
        first = min(config.first / config.kappa, config.first)
        place = torch.linspace(0, 1, config.steps, dtype=torch.float64) ** config.power
        return cls((first * (config.last / first) ** place) ** 2, config.kappa)

    @property
    def steps(self) -> int:
        return len(self.etas)

    def eta(self, t: Tensor | float) -> Tensor:
        """Share of the degraded image at a time, 0 at 0; ValueError between the discrete times."""
        place = torch.as_tensor(t, dtype=torch.float64) * self.steps
        whole = place.round()
        if place.device.type == "cpu" and ((place - whole).abs() > 1e-6).any():
            raise ValueError(f"ResShift has the times i / {self.steps} alone, not {t}")
        padded = torch.cat([self.etas.new_zeros(1), self.etas]).to(place.device)
        return padded[whole.long()]

    def state(self, clean: Tensor, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        eta = self.eta(t)
        shifted = clean + over(eta, clean) * (image.to(clean) - clean)
        return shifted + over(self.kappa * eta.sqrt(), clean) * noise

    def start(self, image: Tensor, noise: Tensor) -> Tensor:
        return image + self.kappa * math.sqrt(self.etas[-1]) * noise

    def posterior(self, t: float, lower: float) -> tuple[float, float, float]:
        """Weights of x_t and of the clean image in the mean at ``lower``, and the variance (Eq. 7).

        With times left out between them too: the noise of the way is a Markov chain.
        """
        above, below = float(self.eta(t)), float(self.eta(lower))
        share = below / above
        return share, 1 - share, self.kappa**2 * share * (above - below)

    def step(self, x: Tensor, clean: Tensor, t: float, lower: float, noise: Tensor) -> Tensor:
        of_x, of_clean, variance = self.posterior(t, lower)
        return of_x * x + of_clean * clean + math.sqrt(variance) * noise

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skip, out, _ = predicts_clean(t)
        return skip, out, (1 + self.kappa**2 * self.eta(t)).rsqrt()

    def times(self, steps: int) -> Tensor:
        if not 1 <= steps <= self.steps:
            raise ValueError(f"steps is {steps}; this ResShift has 1 to {self.steps}")
        chosen = torch.linspace(self.steps, 0, steps + 1, dtype=torch.float64).round()
        return chosen / self.steps


@dataclass(frozen=True)
class InDI:
    """x_t = (1 - t) clean + t (image + noise) (arXiv:2303.11435, Eq. 2 and Section 4.2).

    Attributes:
        noise: standard deviation of what is added to the degraded image.
    """

    noise: float = 0.0
    steps: None = None

    def state(self, clean: Tensor, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        end = self.start(image.to(clean), noise)
        return clean + over(t, clean) * (end - clean)

    def start(self, image: Tensor, noise: Tensor) -> Tensor:
        return image + self.noise * noise

    def step(self, x: Tensor, clean: Tensor, t: float, lower: float, noise: Tensor) -> Tensor:
        return clean + lower / t * (x - clean)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return predicts_clean(t)

    def times(self, steps: int) -> Tensor:
        if steps < 1:
            raise ValueError(f"steps is {steps}; InDI takes at least 1")
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class IRSDE:
    """dx = theta_t (image - x) dt + scale sqrt(2 theta_t) dw in T steps (arXiv:2301.11699).

    Attributes:
        thetas: (T + 1,) float64, at the times 0 ... T; the first is never used.
        delta: share of the clean image that is left at T.
        scale: standard deviation of the noise at the end.
    """

    thetas: Tensor
    delta: float
    scale: float

    @classmethod
    def of(cls, config: IRSDEConfig) -> Self:
        """The process of a configuration."""
        return cls(THETAS[config.schedule](config.steps), config.delta, config.noise)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.thetas) - 1

    @property
    def dt(self) -> float:
        """Length of a step: the whole way leaves ``delta`` of the clean image."""
        return -math.log(self.delta) / float(self.thetas[1:].sum())

    @cached_property
    def share(self) -> Tensor:
        """(T + 1,) share B of the clean image in x_t: exp of minus the integral of theta."""
        return torch.cat([self.thetas.new_zeros(1), -self.thetas[1:].cumsum(0) * self.dt]).exp()

    @cached_property
    def std(self) -> Tensor:
        """(T + 1,) standard deviation of the noise in x_t."""
        return self.scale * (1 - self.share**2).sqrt()

    @property
    def betas(self) -> Tensor:
        """(T,) of the DDPM that (x_t - image) / scale is: its posterior is the optimal step."""
        return -torch.expm1(-2 * self.thetas[1:] * self.dt)

    def state(self, x: Tensor, image: Tensor, t: int) -> Tensor:
        """x_t, in which x = clean + sigma * noise is centred on the degraded image."""
        return image + float(self.share[t]) * (x - image)

    def level(self, x: Tensor, image: Tensor, t: int) -> Tensor:
        """The inverse of `state`."""
        return image + (x - image) / float(self.share[t])

    def sde_step(self, x: Tensor, image: Tensor, eps: Tensor, t: int, noise: Tensor) -> Tensor:
        """x_{t-1} of x_t by the reverse SDE, given the noise in x_t (Eq. 11)."""
        drift, spread = self._drift(x, image, eps, t, share=1.0)
        return x - drift * self.dt - spread * math.sqrt(self.dt) * noise

    def ode_step(self, x: Tensor, image: Tensor, eps: Tensor, t: int) -> Tensor:
        """x_{t-1} of x_t by the probability-flow ODE, given the noise in x_t."""
        drift, _ = self._drift(x, image, eps, t, share=0.5)
        return x - drift * self.dt

    def _drift(
        self, x: Tensor, image: Tensor, eps: Tensor, t: int, *, share: float
    ) -> tuple[Tensor, float]:
        theta = float(self.thetas[t])
        squared = 2 * self.scale**2 * theta
        score = -eps / float(self.std[t])
        return theta * (image - x) - share * squared * score, math.sqrt(squared)


def cosine_thetas(steps: int) -> Tensor:
    """1 - c(u), c a squared cosine, at the T + 1 inner nodes of T + 2 parts."""
    u = torch.arange(1, steps + 2, dtype=torch.float64) / (steps + 2)
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    return 1 - torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / start


def linear_thetas(steps: int) -> Tensor:
    """From 0.1 / (T + 1) to 20 / (T + 1)."""
    scale = 1000 / (steps + 1)
    return torch.linspace(1e-4 * scale, 0.02 * scale, steps + 1, dtype=torch.float64)


def constant_thetas(steps: int) -> Tensor:
    """1 throughout."""
    return torch.ones(steps + 1, dtype=torch.float64)


THETAS: dict[str, Callable[[int], Tensor]] = {
    "cosine": cosine_thetas,
    "linear": linear_thetas,
    "constant": constant_thetas,
}
"""Speed of IR-SDE's return by the name of its schedule, (T + 1,) of T."""
