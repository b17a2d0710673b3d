"""Guidance: one `denoise(x, sigma)` made of two.

Classifier-free guidance (arXiv:2207.12598) passes the same denoiser without its label as
reference; autoguidance (arXiv:2406.02507) passes a smaller or less trained one.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise, Estimate, Estimator, over

Weight = Callable[[Tensor], Tensor]
"""sigma to the guidance weight of each level; 1 is no guidance."""


class Reference:
    """main - reference, evaluated anew at every n-th guided level and reused in between.

    With ``every`` above 1 an approximation: the difference changes slowly along the path.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.levels = 0
        self.difference = torch.zeros(())

    def is_due(self) -> bool:
        """Whether the next level needs the reference itself; counts the levels."""
        self.levels += 1
        return (self.levels - 1) % self.every == 0

    def keep(self, main: Tensor, reference: Tensor) -> Tensor:
        """Remember how far apart the two are; returns the reference."""
        if self.every > 1:
            self.difference = main - reference
        return reference

    def estimate(self, main: Tensor) -> Tensor:
        """What the reference would say, were the difference still the same."""
        return main - self.difference


def guide(
    main: Denoise,
    reference: Denoise,
    *,
    weight: Weight,
    channels: int | None = None,
    every: int = 1,
) -> Denoise:
    """reference + w (main - reference): w = 1 is no guidance, w > 1 pushes past main.

    Args:
        main: the denoiser to follow.
        reference: the denoiser to move away from; not called at levels where w is 1.
        weight: w at each level.
        channels: guide only the first so many channels, as upstream DiffiT and DiT do with 3 of
            4 latent channels; None guides all.
        every: see `Reference`.
    """
    memory = Reference(every)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        w = weight(sigma)
        estimate = main(x, sigma)
        if _is_one(w):
            return estimate
        due = memory.is_due()
        other = memory.keep(estimate, reference(x, sigma)) if due else memory.estimate(estimate)
        return _push(estimate, other, w, channels)

    return denoise


def guide_estimate(
    main: Estimator,
    reference: Denoise,
    *,
    weight: Weight,
    channels: int | None = None,
    every: int = 1,
) -> Estimator:
    """`guide` for an `Estimate`: the clean image is guided, the variance is main's."""
    memory = Reference(every)

    def estimate(x: Tensor, sigma: Tensor) -> Estimate:
        w = weight(sigma)
        clean, fraction = main(x, sigma)
        if not _is_one(w):
            due = memory.is_due()
            other = memory.keep(clean, reference(x, sigma)) if due else memory.estimate(clean)
            clean = _push(clean, other, w, channels)
        return Estimate(clean, fraction)

    return estimate


def paired(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    label: Tensor,
    *,
    null: int,
    weight: Weight,
    channels: int | None = None,
    every: int = 1,
) -> Denoise:
    """Classifier-free `guide` that evaluates both halves in one batch of 2 B.

    Faster where a batch of B does not fill the device; equal up to rounding.

    Args:
        denoise: (x, sigma, label) to the clean image.
        label: (B,) int64 classes.
        null: the label that means "no class": the network's number of classes.
        weight, channels, every: as in `guide`.
    """
    memory = Reference(every)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        w = weight(sigma)
        if _is_one(w):
            return denoise(x, sigma, label)
        if not memory.is_due():
            main = denoise(x, sigma, label)
            return _push(main, memory.estimate(main), w, channels)
        main, reference = denoise(*_doubled(x, sigma, label, null)).chunk(2)
        return _push(main, memory.keep(main, reference), w, channels)

    return guided


def paired_estimate(
    estimate: Callable[[Tensor, Tensor, Tensor], Estimate],
    label: Tensor,
    *,
    null: int,
    weight: Weight,
    channels: int | None = None,
    every: int = 1,
) -> Estimator:
    """`paired` for an `Estimate`: the clean image is guided, the variance is that of the class."""
    memory = Reference(every)

    def guided(x: Tensor, sigma: Tensor) -> Estimate:
        w = weight(sigma)
        if _is_one(w):
            return estimate(x, sigma, label)
        if not memory.is_due():
            main, fraction = estimate(x, sigma, label)
            return Estimate(_push(main, memory.estimate(main), w, channels), fraction)
        clean, fraction = estimate(*_doubled(x, sigma, label, null))
        main, reference = clean.chunk(2)
        pushed = _push(main, memory.keep(main, reference), w, channels)
        return Estimate(pushed, fraction[: len(x)])

    return guided


def constant(w: float) -> Weight:
    """The same weight at every level."""
    return lambda sigma: torch.full_like(sigma, w)


def power_cosine(w: float, power: float, progress: Callable[[Tensor], Tensor]) -> Weight:
    """1 + (w - 1) (1 - cos(pi p^power)) / 2 over the progress p: from 1 at the start up to w.

    MDT's schedule (arXiv:2303.14389), DiffiT's at 256 pixels with power 4.

    Args:
        w: the weight where the noise is gone.
        power: large values wait longer.
        progress: of the formulation, `Formulation.progress`.
    """
    return lambda sigma: 1 + (w - 1) * (1 - (math.pi * progress(sigma) ** power).cos()) / 2


def interval(w: float, low: float, high: float) -> Weight:
    """w where low <= sigma <= high, elsewhere 1 (arXiv:2404.07724)."""

    def weight(sigma: Tensor) -> Tensor:
        inside = (sigma >= low) & (sigma <= high)
        return torch.where(inside, torch.full_like(sigma, w), torch.ones_like(sigma))

    return weight


def unless_near_one(weight: Weight, gap: float) -> Weight:
    """``weight``, but 1, which costs no reference, where it is no further than ``gap`` from 1."""

    def snapped(sigma: Tensor) -> Tensor:
        w = weight(sigma)
        return torch.where((w - 1).abs() <= gap, torch.ones_like(w), w)

    return snapped


def _push(main: Tensor, reference: Tensor, w: Tensor, channels: int | None) -> Tensor:
    # A slice up to None is the whole.
    guided = reference[:, :channels] + over(w, main) * (main - reference)[:, :channels]
    return guided if channels is None else torch.cat([guided, main[:, channels:]], 1)


def _is_one(w: Tensor) -> bool:
    return bool((w == 1).all())


def _doubled(x: Tensor, sigma: Tensor, label: Tensor, null: int) -> tuple[Tensor, Tensor, Tensor]:
    both = torch.cat([label, torch.full_like(label, null)])
    return torch.cat([x, x]), sigma if sigma.ndim == 0 else torch.cat([sigma, sigma]), both
