"""How much a changed network changes the denoiser: at several noise levels, on real images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from diffit import draws
from diffit.codecs import Autoencoder
from diffit.data import Dataset
from diffit.diffusion.denoiser import over
from diffit.distributed import double
from diffit.errors import DataError
from diffit.model import Model


class Noisy(NamedTuple):
    """The arguments of the denoiser at one noise level."""

    x: Tensor
    sigma: Tensor
    label: Tensor | None


class Answer(NamedTuple):
    """What a model says at one noise level: (B, C, H, W) float32 each.

    Attributes:
        clean: D(x, sigma, label).
        raw: the part of the network's output that D is made of.
    """

    clean: Tensor
    raw: Tensor


class Gap(NamedTuple):
    """The relative error of a model at one noise level, in root mean square over all images.

    Attributes:
        sigma: the noise level.
        clean: of D. It vanishes at low levels whatever the network says, since D is nearly x, and
            is enlarged at high ones where the network predicts noise: D = x - sigma F.
        raw: of the network's output, which means the same at all levels.
    """

    sigma: float
    clean: float
    raw: float


@dataclass(frozen=True)
class Probe:
    """Real images with noise of several levels; the same for every model.

    Attributes:
        clean: (B, C, H, W) images in the space of the denoiser.
        label: (B,) their classes, or None.
        sigmas: (L,) noise levels, float64, on the CPU: midpoints of equal parts of the training
            law.
        noise: (L, B, C, H, W) unit-normal draws.
    """

    clean: Tensor
    label: Tensor | None
    sigmas: Tensor
    noise: Tensor

    @classmethod
    def of(
        cls,
        model: Model,
        dataset: Dataset,
        *,
        images: int,
        levels: int,
        offset: Fraction = Fraction(0),
        seed: int = 0,
    ) -> Self:
        """An even choice of ``images`` of a data set, at ``levels`` levels.

        ``offset``, at least 0 and below 1, is where in each stretch of the set the choice lies:
        probes of other offsets have other images, as far as there are enough.
        """
        count = min(images, len(dataset))
        numbers = [math.floor((i + offset) * len(dataset) / count) for i in range(count)]
        clean, label = _examples(model, dataset, numbers)
        places = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
        sigmas = model.formulation.training_sigma(places).sort().values
        noise = [draws.normal(seed, numbers, f"probe-{i}", model.shape) for i in range(levels)]
        return cls(clean, label, sigmas, torch.stack(noise).to(model.device))

    def __len__(self) -> int:
        return len(self.sigmas)

    def __getitem__(self, level: int) -> Noisy:
        """The images with the noise of one level."""
        sigma = self.sigmas[level]
        return Noisy(self.clean + float(sigma) * self.noise[level], sigma, self.label)


@torch.no_grad()
def answers(model: Model, probe: Probe) -> Iterator[Answer]:
    """What a model says at each level of a probe."""
    for level in range(len(probe)):
        yield answer(model, probe[level])


def answer(model: Model, given: Noisy) -> Answer:
    """D and the network's output, from one evaluation."""
    channels = given.x.shape[1]
    raw = model.denoiser.raw(*given)[:, :channels]
    scalings = model.formulation.scalings(given.sigma)
    clean = over(scalings.skip, given.x) * given.x + over(scalings.out, given.x) * raw
    return Answer(clean, raw)


def gaps(model: Model, probe: Probe, exact: Sequence[Answer]) -> Iterator[Gap]:
    """The errors of a model against the answers of another one, level by level."""
    found = answers(model, probe)
    for sigma, one, other in zip(probe.sigmas, exact, found, strict=True):
        yield Gap(float(sigma), *map(relative, one, other))


def relative(exact: Tensor, other: Tensor) -> float:
    """|other - exact| / |exact|; NaN where ``other`` is not finite."""
    kind = double(exact.device)
    size = exact.to(kind).norm().clamp_min(torch.finfo(kind).tiny)
    return float((other - exact).to(kind).norm() / size)


def overall(found: Sequence[Gap]) -> float:
    """One number for all levels: the root mean square of the network's relative errors."""
    return float(np.sqrt(np.mean([gap.raw**2 for gap in found])))


def _examples(model: Model, dataset: Dataset, numbers: list[int]) -> tuple[Tensor, Tensor | None]:
    """(B, C, H, W) images in the space of the denoiser, and (B,) labels if there are classes."""
    examples = [dataset[i] for i in numbers]
    arrays = [torch.from_numpy(np.ascontiguousarray(example.image)) for example in examples]
    images = torch.stack(arrays).to(model.device)
    codec = model.codec
    if isinstance(codec, Autoencoder) and images.dtype != torch.uint8:
        clean = codec.to_model(images[:, : model.shape[0]].float())  # means of the posteriors
    else:
        clean = codec.encode(images)
    if tuple(clean.shape[1:]) != model.shape:
        raise DataError(
            f"the images are {_sizes(clean.shape[1:])} for this model, which works on "
            f"{_sizes(model.shape)} (channels x height x width); name others with --data"
        )
    if not model.classes:
        return clean, None
    known = [e.label if e.label is not None and e.label < model.classes else None for e in examples]
    label = torch.tensor([model.classes if value is None else value for value in known])
    return clean, label.to(model.device)


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
