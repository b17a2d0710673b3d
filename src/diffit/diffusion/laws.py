"""Sigma laws: the noise level of each published method as a function of its own time, and back.

Everywhere x = clean + sigma * noise. A method that works on x_t = a * x, of signal a, has the
prior x_t ~ N(0, 1) at its noisiest time, hence x ~ N(0, (1 / a)^2).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

SNAP = 1e-3
"""An index this close to an integer is that integer: networks were trained on integers."""


class Law(Protocol):
    """All methods are elementwise, of float64 tensors; t in [0, 1] grows with the noise."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t."""

    def t(self, sigma: Tensor) -> Tensor:
        """Time at a noise level, clamped to [0, 1]."""

    def progress(self, sigma: Tensor) -> Tensor:
        """How much of the noise is gone, in [0, 1]: 0 at the start of sampling, 1 at its end."""

    def signal(self, sigma: Tensor) -> Tensor:
        """The factor a of the published state x_t = a * x."""

    def prior_std(self, sigma: Tensor) -> Tensor:
        """Standard deviation of x where sampling starts, if it starts at ``sigma``."""


@dataclass(frozen=True, eq=False)
class Discrete:
    """DDPM: T levels sqrt(1 / a_k - 1), a_k the cumulative product of 1 - beta (arXiv:2006.11239).

    Between levels the index is linear in log sigma, or in log alpha as in U-ViT and DiMR. IR-SDE's
    noise has the standard deviation ``scale`` in the published state, and so have all levels.
    """

    betas: Tensor
    interpolation: Literal["sigma", "alpha"] = "sigma"
    scale: float = 1.0

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(T,) float64, decreasing: the squared signal of each index."""
        return torch.cumprod(1 - self.betas, 0)

    @cached_property
    def levels(self) -> Tensor:
        """(T,) float64, increasing: sigma of each index."""
        return self.scale * (1 / self.alpha_bar - 1).sqrt()

    def index(self, sigma: Tensor) -> Tensor:
        """Fractional index in [0, T - 1]; within 1e-3 of an integer it is that integer."""
        rungs = self._rung(self.levels).to(sigma.device, sigma.dtype)
        rung = self._rung(sigma)
        # As `torch.searchsorted`, which ONNX has no word for.
        upper = (rungs < rung[..., None]).sum(-1).clamp(1, len(rungs) - 1)
        below, above = rungs[upper - 1], rungs[upper]
        index = (upper - 1 + (rung - below) / (above - below)).clamp(0, len(rungs) - 1)
        whole = index.round()
        return torch.where((index - whole).abs() < SNAP, whole, index)

    def sigma_at(self, index: Tensor) -> Tensor:
        """Inverse of `index`."""
        rungs = self._rung(self.levels).to(index.device, index.dtype)
        lower = index.floor().long().clamp(0, len(rungs) - 2)
        rung = torch.lerp(rungs[lower], rungs[lower + 1], index - lower)
        if self.interpolation == "sigma":
            return rung.exp()
        return self.scale * torch.expm1(2 * rung).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        steps = len(self.betas)
        return self.sigma_at((t * steps - 1).clamp(0, steps - 1))

    def t(self, sigma: Tensor) -> Tensor:
        return (self.index(sigma) + 1) / len(self.betas)

    def progress(self, sigma: Tensor) -> Tensor:
        return 1 - self.index(sigma) / len(self.betas)

    def signal(self, sigma: Tensor) -> Tensor:
        return (1 + (sigma / self.scale) ** 2).rsqrt()

    def prior_std(self, sigma: Tensor) -> Tensor:
        return self.scale * (1 + (sigma / self.scale) ** 2).sqrt()

    def _rung(self, sigma: Tensor) -> Tensor:
        if self.interpolation == "sigma":
            return sigma.log()
        return torch.log1p((sigma / self.scale) ** 2) / 2


@dataclass(frozen=True)
class VP:
    """sqrt(exp b(t) - 1), b the integral of beta(t) = low + t (high - low) (arXiv:2011.13456)."""

    low: float = 0.1
    high: float = 20.0

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(integral_of_beta(t, self.low, self.high)).sqrt()

    def t(self, sigma: Tensor) -> Tensor:
        return time_of_integral(torch.log1p(sigma**2), self.low, self.high)

    def progress(self, sigma: Tensor) -> Tensor:
        return 1 - self.t(sigma)

    def signal(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def prior_std(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).sqrt()


@dataclass(frozen=True)
class SubVP:
    """(1 - m^2) / m with m = exp(-b(t) / 2), that is 2 sinh(b(t) / 2) (arXiv:2011.13456)."""

    low: float = 0.1
    high: float = 20.0

    def sigma(self, t: Tensor) -> Tensor:
        return 2 * torch.sinh(integral_of_beta(t, self.low, self.high) / 2)

    def t(self, sigma: Tensor) -> Tensor:
        return time_of_integral(2 * torch.asinh(sigma / 2), self.low, self.high)

    def progress(self, sigma: Tensor) -> Tensor:
        return 1 - self.t(sigma)

    def signal(self, sigma: Tensor) -> Tensor:
        return 2 / (sigma + (sigma**2 + 4).sqrt())

    def prior_std(self, sigma: Tensor) -> Tensor:
        return (sigma + (sigma**2 + 4).sqrt()) / 2


@dataclass(frozen=True)
class VE:
    """low (high / low)^t (arXiv:2011.13456); pixels in [-1, 1] double the published range."""

    low: float = 0.02
    high: float = 100.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.low * (self.high / self.low) ** t

    def t(self, sigma: Tensor) -> Tensor:
        span = torch.tensor(self.high / self.low, dtype=sigma.dtype).log().to(sigma.device)
        return ((sigma / self.low).log() / span).clamp(0, 1)

    def progress(self, sigma: Tensor) -> Tensor:
        return 1 - self.t(sigma)

    def signal(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def prior_std(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class LogNormal:
    """EDM: ln sigma ~ N(mean, std^2); t is the fraction of training below (arXiv:2206.00364)."""

    mean: float = -1.2
    std: float = 1.2

    def sigma(self, t: Tensor) -> Tensor:
        quantile: Tensor = torch.special.ndtri(t)
        return (self.mean + self.std * quantile).exp()

    def t(self, sigma: Tensor) -> Tensor:
        fraction: Tensor = torch.special.ndtr((sigma.log() - self.mean) / self.std)
        return fraction

    def progress(self, sigma: Tensor) -> Tensor:
        return 1 - self.t(sigma)

    def signal(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def prior_std(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class Bridge:
    """The level is the time itself: of methods whose state is no clean image with noise added."""

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def t(self, sigma: Tensor) -> Tensor:
        return sigma

    def progress(self, sigma: Tensor) -> Tensor:
        return 1 - sigma

    def signal(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def prior_std(self, sigma: Tensor) -> Tensor:
        raise ValueError("ResShift and InDI start from the degraded image; use `Bridge.start`")


@dataclass(frozen=True)
class Flow:
    """t / (1 - t): straight paths x_t = (1 - t) clean + t noise (arXiv:2210.02747, 2209.03003)."""

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def t(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)

    def progress(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def signal(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def prior_std(self, sigma: Tensor) -> Tensor:
        return 1 + sigma


def integral_of_beta(t: Tensor, low: float, high: float) -> Tensor:
    """b(t), the integral from 0 to t of low + s (high - low)."""
    return t * (low + t * (high - low) / 2)


def time_of_integral(b: Tensor, low: float, high: float) -> Tensor:
    """Inverse of `integral_of_beta`, clamped to [0, 1]; the form that keeps its digits near 0."""
    return (2 * b / (low + (low**2 + 2 * (high - low) * b).sqrt())).clamp(max=1)


def linear_betas(steps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """(T,) float64; the published range belongs to 1000 steps and is scaled to ``steps``."""
    scale = 1000 / steps
    return torch.linspace(first * scale, last * scale, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """(T,) float64, linear in the square root: Stable Diffusion's (arXiv:2112.10752)."""
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int) -> Tensor:
    """(T,) float64, from a squared cosine of alpha-bar (arXiv:2102.09672, Eq. 17)."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((times + 0.008) / 1.008 * torch.pi / 2) ** 2
    # The last ratio would be 0; the paper cuts every beta at 0.999.
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
