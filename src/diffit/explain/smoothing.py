"""Smoothing: noisy copies of an image, denoised or not, and what a classifier makes of them.

Copy j of image i has its own noise, a function of (seed, i, j, purpose) alone. Copies are computed
in units of a fixed size and summed up in the order of the units, so that a result does not depend
on the number of processes. Denoising is a part of the classifier that is smoothed (Carlini et al.,
arXiv:2206.10550): the certificate rests on the noise that was added, not on the denoiser's quality.
It takes that noise, float32 numbers of a generator, for Gaussian, as the literature does.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffit import draws
from diffit.diffusion.denoiser import Denoise
from diffit.distributed import double
from diffit.errors import DataError
from diffit.explain.bounds import Moments
from diffit.explain.classifier import Classifier
from diffit.generation import AUTOCAST
from diffit.samplers import SAMPLERS
from diffit.samplers.ddpm import clipped

Explain = Callable[[Tensor, Tensor], Tensor]
"""(B, C, H, W) images and (B,) classes to maps (B, T) of tokens or (B, H, W) of pixels."""

Purpose = Literal["prediction", "selection", "estimation", "maps"]
"""What copies are drawn for; those of one purpose are independent of those of any other."""

BLOCK = 16
"""Copies whose noise comes from one stream, since to open one costs as much as to draw a digit."""

MANY = 1 << 20
"""From so many values on it pays to draw streams side by side; a GPU waits less for its noise."""


class Path(NamedTuple):
    """A walk in several steps from the noisy image to a clean one."""

    sigmas: Tensor
    """(steps + 1,) decreasing noise levels from that of the image to 0."""
    sampler: str
    """A name of `diffit.samplers.SAMPLERS`."""


@dataclass(frozen=True)
class Smoothing:
    """How copies of an image are made noisy and clean again.

    Attributes:
        sigma: standard deviation of the noise, for pixels in [-1, 1].
        denoise: the denoiser, of a model by `diffit.explain.fitting.denoise_of`; None shows the
            noisy image itself to the classifier.
        seed: of all noise.
        unit: copies that are computed together; another number may change last digits.
        clip: keep the denoised image within [-1, 1].
        path: denoise in several steps; None takes one evaluation of the denoiser.
        oversmooth: the denoiser is told this multiple of sigma. The certificate stays with sigma.
        precision: bf16 and fp16 compute matrix products in that precision (autocast).
    """

    sigma: float
    denoise: Denoise | None = None
    seed: int = 0
    unit: int = 64
    clip: bool = True
    path: Path | None = None
    oversmooth: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("sigma", "oversmooth"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value:g}; it must be above 0 and finite")
        if self.unit < 1:
            raise ValueError(f"unit is {self.unit}; at least 1 copy is computed at a time")

    def noise(self, shape: tuple[int, ...], number: int, purpose: str, copies: range) -> Tensor:
        """(len(copies), *shape) float32 unit-normal noise of some copies of image ``number``."""
        if not 0 <= number < 1 << 32:
            raise ValueError(f"image number {number} must lie between 0 and 2^32 - 1")
        blocks = range(copies.start // BLOCK, -(-copies.stop // BLOCK))

        def draw(block: int) -> Tensor:
            stream = (number << 32) + block
            return draws.normal(self.seed, [stream], f"smoothing {purpose}", (BLOCK, *shape))[0]

        threads = min(torch.get_num_threads(), len(blocks))
        if threads > 1 and len(blocks) * BLOCK * math.prod(shape) >= MANY:
            with ThreadPoolExecutor(threads) as pool:
                drawn = torch.cat(list(pool.map(draw, blocks)))
        else:
            drawn = torch.cat([draw(block) for block in blocks])
        skipped = copies.start - blocks.start * BLOCK
        return drawn[skipped : skipped + len(copies)]

    def noisy(self, image: Tensor, number: int, purpose: str, copies: range) -> Tensor:
        """(len(copies), C, H, W) noisy copies of a (C, H, W) image."""
        noise = self.noise(tuple(image.shape), number, purpose, copies)
        return image + self.sigma * noise.to(image)

    def shown(
        self, noisy: Tensor, number: int = 0, purpose: str = "", copies: range | None = None
    ) -> Tensor:
        """What the classifier is shown for noisy copies: denoised ones, where there is a denoiser.

        Differentiable in one step. The other arguments give the copies' own noise to a path whose
        sampler draws some; by default they are the first copies.
        """
        if self.denoise is None:
            return noisy
        denoise = clipped(self.denoise) if self.clip else self.denoise
        if self.path is None:
            return denoise(noisy, torch.tensor(self.oversmooth * self.sigma, dtype=torch.float64))
        drawn = range(len(noisy)) if copies is None else copies
        noise = _PathNoise(self, noisy, number, purpose, drawn)
        run = SAMPLERS[self.path.sampler].run
        clean = run(denoise, noisy.to(double(noisy.device)), self.path.sigmas, noise=noise)
        # A solver of a higher order may step over the edge that its estimates keep to.
        return clean.to(noisy).clamp(-1, 1) if self.clip else clean.to(noisy)

    def computing(self, device: torch.device) -> AbstractContextManager[Any]:
        """Computes in the chosen precision."""
        kind = AUTOCAST[self.precision]
        return torch.autocast(device.type, kind, enabled=kind is not None)


class _PathNoise:
    """The draws of a sampler along a path: of every copy its own, whatever its unit."""

    def __init__(
        self, smoothing: Smoothing, noisy: Tensor, number: int, purpose: str, copies: range
    ) -> None:
        self.smoothing, self.number, self.purpose, self.copies = smoothing, number, purpose, copies
        self.shape, self.device = tuple(noisy.shape[1:]), noisy.device
        self.step = 0

    def __call__(self) -> Tensor:
        self.step += 1
        purpose = f"{self.purpose}, step {self.step}"
        noise = self.smoothing.noise(self.shape, self.number, purpose, self.copies)
        return noise.to(self.device).to(double(self.device))


class Job(NamedTuple):
    """A unit of copies of one image, and what is wanted of them."""

    image: Any
    """(C, H, W) in [-1, 1], a tensor; an array on the way to another process."""
    number: int
    """Which image it is: its place in the data set."""
    purpose: Purpose
    """"maps" wants maps, everything else votes."""
    copies: range
    label: int | None = None
    """The class that maps explain; None explains each copy for the class it is taken for."""


class Votes(NamedTuple):
    """What a classifier said of some copies."""

    counts: np.ndarray
    """(K,) int64: how often each class came first."""
    probabilities: np.ndarray
    """(K,) float64: the sum of the copies' class probabilities."""
    n: int
    """How many copies."""

    @property
    def mean_probabilities(self) -> np.ndarray:
        """(K,) smoothed class probabilities, estimated."""
        return self.probabilities / self.n


class MapSums(NamedTuple):
    """Sums over the maps of some copies, each without negative entries and with sum 1."""

    total: np.ndarray
    """(T,) float64."""
    squares: np.ndarray
    """(T,) float64 sum of squares."""
    n: int
    shape: tuple[int, ...]
    """Of one map: (T,) for tokens, (H, W) for pixels."""

    def plus(self, other: "MapSums") -> "MapSums":
        """The sums over the copies of both."""
        total, squares = self.total + other.total, self.squares + other.squares
        return MapSums(total, squares, self.n + other.n, self.shape)

    def moments(self) -> Moments:
        """Mean and unbiased variance of each entry; the variance of a single map counts as 0."""
        mean = self.total / self.n
        variance = (self.squares - self.n * mean**2) / max(self.n - 1, 1)
        return Moments(mean, np.maximum(variance, 0), self.n)


class Smoothed:
    """A classifier behind noise and a denoiser.

    Args:
        classifier: takes images in [-1, 1].
        smoothing: how the copies are made.
        explain: maps of the classifier, where maps are wanted.
        device: where classifier and denoiser are.
    """

    def __init__(
        self,
        classifier: Classifier,
        smoothing: Smoothing,
        explain: Explain | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.classifier, self.smoothing, self.explain = classifier, smoothing, explain
        self.device = torch.device(device)

    def unit(self, job: Job) -> Votes | MapSums:
        """What one unit of copies says."""
        image, smoothing = job.image.to(self.device), self.smoothing
        with torch.no_grad(), smoothing.computing(self.device):
            noisy = smoothing.noisy(image, job.number, job.purpose, job.copies)
            shown = smoothing.shown(noisy, job.number, job.purpose, job.copies)
        return self._maps(shown, job.label) if job.purpose == "maps" else self._votes(shown)

    def run(self, jobs: Iterator[Job]) -> Iterator[Votes | MapSums]:
        """The jobs one after the other, in this process; see also `diffit.explain.processes`."""
        return map(self.unit, jobs)

    def _votes(self, shown: Tensor) -> Votes:
        logits = self._logits(shown)
        counts = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        probabilities = logits.double().softmax(1).sum(0)
        return Votes(counts.cpu().numpy(), probabilities.cpu().numpy(), len(shown))

    def _maps(self, shown: Tensor, label: int | None) -> MapSums:
        if self.explain is None:
            raise ValueError("maps need `explain`, a method of explanation")
        if label is None:
            labels = self._logits(shown).argmax(1)
        else:
            labels = torch.full((len(shown),), label, device=shown.device)
        with self.smoothing.computing(shown.device):
            maps = self.explain(shown, labels).detach()
        shape = tuple(maps.shape[1:])
        share = normalised(maps).cpu()
        return MapSums(share.sum(0).numpy(), share.square().sum(0).numpy(), len(share), shape)

    @torch.no_grad()
    def _logits(self, shown: Tensor) -> Tensor:
        with self.smoothing.computing(shown.device):
            logits = self.classifier(shown)
        if not torch.isfinite(logits).all():
            raise DataError(
                "the classifier answers a noisy image with values that are not finite; its weights "
                "or those of the denoiser are damaged, or the precision is too low"
            )
        return logits


def normalised(maps: Tensor) -> Tensor:
    """(B, ...) maps to (B, T) float64: negative entries 0, sum 1; a map without any is uniform.

    What is below 0 counts as 0, so that a map is a law over its entries: the certificate needs it.
    """
    share = maps.flatten(1).double()
    if not torch.isfinite(share).all():
        raise DataError("the explanation of a noisy image holds values that are not finite")
    share = share.clamp(min=0)
    total = share.sum(1, keepdim=True)
    # A tiny sum would overflow in the division; such a map says nothing either.
    known = total > 1e-300
    return torch.where(known, share / total.where(known, 1), 1 / share.shape[1])
