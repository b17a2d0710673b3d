"""Exact denoisers: data whose conditional mean is a formula, and networks that know it."""

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from diffit.diffusion.denoiser import over
from diffit.diffusion.formulation import Formulation


class Gaussian:
    """Clean images drawn from N(mean, std^2) in every pixel."""

    def __init__(self, mean: float = 0.3, std: float = 0.7) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact denoiser."""
        gain = self.std**2 / (self.std**2 + torch.as_tensor(sigma) ** 2)
        return self.mean + over(gain, x) * (x - self.mean)

    def solution(self, x: Tensor, start: float, stop: float) -> Tensor:
        """The probability-flow ODE in closed form."""
        ratio = (self.std**2 + stop**2) / (self.std**2 + start**2)
        return self.mean + (x - self.mean) * math.sqrt(ratio)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Clean images."""
        unit = torch.randn(shape, generator=generator, dtype=torch.float64)
        return self.mean + self.std * unit


class Correlated:
    """Clean images drawn from N(mean, covariance), their pixels correlated.

    Args:
        mean: (C, H, W).
        covariance: (D, D) of the flattened images, D = C * H * W.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean.double()
        self.variances, self.axes = torch.linalg.eigh(covariance.double())

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact denoiser."""
        noise = torch.as_tensor(sigma).double().reshape(-1, 1) ** 2
        return self._scaled(x, self.variances / (self.variances + noise))

    def solution(self, x: Tensor, start: float, stop: float) -> Tensor:
        """The probability-flow ODE in closed form."""
        return self._scaled(x, ((self.variances + stop**2) / (self.variances + start**2)).sqrt())

    def _scaled(self, x: Tensor, gains: Tensor) -> Tensor:
        along = (x.double() - self.mean).flatten(1) @ self.axes
        return self.mean + ((gains * along) @ self.axes.T).reshape(x.shape)


class Mixture:
    """Clean images drawn from a mixture of isotropic Gaussians; their path in high accuracy.

    Args:
        means: (K, *shape) centres.
        stds: (K,) standard deviations.
        probabilities: (K,) that sum to 1; equal by default.
    """

    def __init__(self, means: Tensor, stds: Tensor, probabilities: Tensor | None = None) -> None:
        self.means = means.double().flatten(1)
        self.stds = stds.double()
        equal = torch.full_like(self.stds, 1 / len(stds))
        self.probabilities = equal if probabilities is None else probabilities.double()
        self.shape = means.shape[1:]

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, K) probability of each component, given x."""
        variance = self.stds**2 + torch.as_tensor(sigma).double().reshape(-1, 1) ** 2
        distance = (x.double().flatten(1)[:, None] - self.means).square().sum(-1)
        size = self.means.shape[1]
        log = self.probabilities.log() - distance / (2 * variance) - size / 2 * variance.log()
        return log.softmax(1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact denoiser."""
        gain = self.stds**2 / (self.stds**2 + torch.as_tensor(sigma).double().reshape(-1, 1) ** 2)
        flat = x.double().flatten(1)[:, None]
        clean = self.means + gain[..., None] * (flat - self.means)
        mixed = (self.responsibilities(x, sigma)[..., None] * clean).sum(1)
        return mixed.reshape(x.shape).to(x.dtype)

    def solution(self, x: Tensor, start: float, stop: float) -> Tensor:
        """The probability-flow ODE by an eighth-order solver, to about 1e-9."""

        def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
            state = torch.from_numpy(flat).reshape(x.shape)
            return (state - self(state, torch.tensor(math.exp(log_sigma)))).flatten().numpy()

        span = (math.log(start), math.log(stop))
        path = solve_ivp(slope, span, x.numpy().ravel(), "DOP853", rtol=1e-10, atol=1e-11)
        return torch.from_numpy(path.y[:, -1].copy()).reshape(x.shape)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Clean images."""
        which = torch.multinomial(self.probabilities, count, True, generator=generator)
        unit = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        flat = self.means[which] + self.stds[which, None] * unit
        return flat.reshape(count, *self.shape)


def three_bumps() -> Mixture:
    """Three components of different widths in the plane, as images of one channel, 1 x 2."""
    means = torch.tensor([[-1.0, 0.3], [0.8, 0.7], [0.2, -0.9]]).reshape(3, 1, 1, 2)
    return Mixture(means, torch.tensor([0.35, 0.25, 0.45]), torch.tensor([0.5, 0.3, 0.2]))


class ExactNetwork(nn.Module):
    """The network F that makes D exact: it undoes a formulation's scalings around an oracle.

    ``level`` turns the time that the network is told back into sigma.
    """

    def __init__(self, oracle: Gaussian | Mixture, formulation: Formulation, level) -> None:
        super().__init__()
        self.oracle, self.formulation, self.level = oracle, formulation, level
        self.register_buffer("precision", torch.zeros((), dtype=torch.float64))

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        sigma = self.level(time.double())
        skip, out, inp, _ = self.formulation.scalings(sigma)
        seen = x / over(inp, x)
        return (self.oracle(seen, sigma) - over(skip, x) * seen) / over(out, x)
