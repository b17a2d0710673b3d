"""Mean and covariance of a stream of features, in float64, mergeable.

The update of Chan, Golub and LeVeque (1979): two sets of images become one from their counts,
means and scatter matrices alone, without the cancellation of summed squares.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gaussian:
    """What a Frechet distance knows of a set of images."""

    mean: Tensor
    """(D,) float64."""
    covariance: Tensor
    """(D, D) float64, divided by n - 1."""

    @cached_property
    def root(self) -> Tensor:
        """(D, R) matrix M with M M^T = covariance; R is the rank."""
        values, vectors = torch.linalg.eigh(self.covariance)
        # Rounding leaves eigenvalues of this size where there are none: their roots, about 1e-8
        # of the largest, would add up over the missing ranks.
        noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
        kept = values > noise
        root: Tensor = vectors[:, kept] * values[kept].sqrt()
        return root


@dataclass(eq=False)
class Moments:
    """Running count, mean and scatter of (B, D) batches."""

    dims: int
    count: int = 0
    mean: Tensor = field(init=False)
    scatter: Tensor = field(init=False)
    """(D, D) sum of (x - mean)(x - mean)^T."""

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.dims, dtype=torch.float64)
        self.scatter = torch.zeros(self.dims, self.dims, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add a batch of (B, D) features of any float type."""
        if features.ndim != 2 or features.shape[1] != self.dims:
            raise ValueError(f"features are {tuple(features.shape)}, not (B, {self.dims})")
        if len(features) == 0:
            return
        x = features.detach().cpu().double()
        mean = x.mean(0)
        x = x - mean
        self._add(len(x), mean, x.T @ x)

    def merge(self, other: "Moments") -> None:
        """Add the images of ``other``, which stays as it is."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def gaussian(self) -> Gaussian:
        """The mean and the unbiased covariance; needs two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.count}")
        return Gaussian(self.mean.clone(), self.scatter / (self.count - 1))

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        step = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(step, step, alpha=self.count * count / total)
        self.mean += step * (count / total)
        self.count = total


def merged(parts: Iterable[Moments]) -> Moments:
    """The moments of all images in ``parts`` together."""
    parts = list(parts)
    total = Moments(parts[0].dims)
    for part in parts:
        total.merge(part)
    return total
