"""Are latents what their layout promises? Statistics, and the ranges that are easily confused.

An autoencoder of Stable Diffusion takes pixels in [-1, 1]; EDM2 gives it [0, 1] instead. REPA took
over EDM2's files with pixels in [-1, 1]: equal names, equal shapes, other numbers. A model trained
on a mixture learns two worlds, and nothing ever fails. The means of the channels tell them apart.
"""

import math

import numpy as np

from diffit.data.latents import LatentSet, Pixels, Statistics, moments

SAMPLE = 256
"""Latents that are looked at where a set does not come with its statistics."""
KNOWN: dict[Pixels, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "-1..1": ((0.86488, -0.27787, 0.21617, 0.37384), (4.85504, 5.31922, 3.93725, 3.98700)),
    "0..1": ((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)),
}
"""Mean and standard deviation of the channels of Stable Diffusion's autoencoder on ImageNet: as
improved MeanFlow (arXiv:2512.02012) and as EDM2 (arXiv:2312.02696) take them for granted."""
NEAR, NEARER = 1.0, 0.7
"""Latents are mistaken if they lie so near to the other range, in standard deviations (the two are
1.6 apart), and at less than this share of their distance to the promised one. Measured with TAESD
on photographs, Tiny-ImageNet and patches: latents of the other range lie 0.3 to 0.9 from it, shares
0.2 to 0.68; those of the promised range 1.7 to 1.9, shares 3.8 and more. Dark print on white may be
taken for the other range."""
SCALED_STD = (0.4, 2.5)
"""What latents may have after shift and scale; all published ones lie between 0.5 and 1.2."""


class Running:
    """Statistics of latents, gathered in float64 as they come."""

    def __init__(self, channels: int) -> None:
        self._pixels = 0
        self._sums = np.zeros((3, channels))  # of mean, mean^2, std^2
        self._low, self._high = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """(N, 2c or c, h, w): mean and standard deviation, or latents alone."""
        c = self._sums.shape[1]
        mean = values[:, :c].astype(np.float64)
        self._pixels += mean[:, 0].size
        self._sums[0] += mean.sum((0, 2, 3))
        self._sums[1] += np.square(mean).sum((0, 2, 3))
        self._sums[2] += (
            np.square(values[:, c:].astype(np.float64)).sum((0, 2, 3)).reshape(-1, c).sum(0)
        )
        self._low, self._high = min(self._low, mean.min()), max(self._high, mean.max())

    def result(self) -> Statistics:
        """Of the latents as training draws them: the posteriors' own variance is part of it."""
        mean, square, own = self._sums / self._pixels
        variance = np.maximum(square + own - mean**2, 0)
        overall = mean.mean()
        return Statistics(
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(variance).tolist()),
            low=float(self._low),
            high=float(self._high),
            overall_mean=float(overall),
            overall_std=float(math.sqrt(max((square + own).mean() - overall**2, 0))),
        )


def statistics(latents: LatentSet) -> Statistics:
    """Those of a cache, or of some latents evenly spread over a set that has none."""
    if latents.index is not None:
        return latents.index.statistics
    running, count = Running(latents.shape[0]), len(latents)
    for k in range(shown := min(SAMPLE, count)):
        stored = latents.storage.stored(k * count // shown)
        running.add(moments(stored, latents.facts)[None])
    return running.result()


def pixels_mistaken(found: Statistics, promised: Pixels) -> bool:
    """Whether the channel means are those of the other range of pixels, as far as one can tell."""
    other: Pixels = "0..1" if promised == "-1..1" else "-1..1"
    if len(found.mean) != 4:
        return False
    near_other, near_promised = _distance(found, other), _distance(found, promised)
    return near_other < NEAR and near_other < NEARER * near_promised


def scale_mistaken(found: Statistics, scale: float | tuple[float, ...]) -> str:
    """A sentence if scaled latents are far from unit size, else nothing."""
    std = np.array(found.std) * np.array(scale)
    typical = float(np.sqrt(np.square(std).mean()))
    if SCALED_STD[0] <= typical <= SCALED_STD[1]:
        return ""
    return (
        f"multiplied by the autoencoder's scale they have a standard deviation of {typical:.2g} "
        f"instead of about 1"
    )


def _distance(found: Statistics, pixels: Pixels) -> float:
    """Of the channel means, in units of their standard deviations: no factor changes it."""
    mean, std = (np.array(x) for x in KNOWN[pixels])
    own = np.array(found.mean) / np.maximum(found.std, 1e-12)
    return float(np.sqrt(np.square(own - mean / std).sum()))
