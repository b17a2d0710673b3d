"""Computed tomography with parallel beams: the Radon transform and its exact adjoint (task 26)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffit.restoration.operators.operator import LinearOperator
from diffit.restoration.operators.tensors import Constant

MAX_KEPT = 1 << 25
"""How many weights are kept in memory, each with the number of its detector."""


class Radon(LinearOperator):
    """y is, for each angle, the image summed along parallel strips, in units of the longer side.

    A pixel is a square: its shadow on the detectors is a trapezoid, shared out to them by area. So
    each projection sums to the image's sum.

    Args:
        shape: (C, H, W).
        angles: (K,) radians; at 0 the strips run down the columns. Few angles make sparse-view,
            a part of the half-circle limited-angle tomography.
    """

    def __init__(self, shape: tuple[int, ...], angles: Tensor) -> None:
        if angles.ndim != 1 or len(angles) == 0 or not angles.isfinite().all():
            raise ValueError("angles is a list of at least one finite angle")
        self.shape, self.angles = tuple(shape), angles.double()
        # One detector a pixel; their line covers the diagonal at any angle.
        self._detectors = math.ceil(math.hypot(shape[1], shape[2])) + 2
        self.measured = (shape[0], len(angles), self._detectors)
        self._scale = 1 / max(shape[1:])
        # What fits is kept; many angles of a large image are computed anew each time.
        count = MAX_KEPT // (3 * shape[1] * shape[2])
        self._kept = [self._shadow(angle) for angle in self.angles[:count].tolist()]

    def __call__(self, x: Tensor) -> Tensor:
        flat, projections = x.flatten(2), []
        for bins, weights in self._shadows():
            values = (flat[:, :, None] * weights.like(x)).flatten(2)
            line = x.new_zeros(*x.shape[:2], self._detectors)
            projections.append(line.index_add(2, bins.flatten().to(x.device), values))
        return torch.stack(projections, dim=2)

    def adjoint(self, y: Tensor) -> Tensor:
        image = y.new_zeros(len(y), self.shape[0], self.shape[1] * self.shape[2])
        for line, (bins, weights) in zip(y.unbind(2), self._shadows(), strict=True):
            image = image + (line[..., bins.to(y.device)] * weights.like(y)).sum(2)
        return image.reshape(len(y), *self.shape)

    def back_projection(self, y: Tensor) -> Tensor:
        """Filtered back-projection: (B, *measured) to (B, *shape), blurry streaks and all.

        Ram-Lak's filter, whose values between the detectors come from the exact line (Kak and
        Slaney, Principles of Computerized Tomographic Imaging, 1988, Eq. 61). It takes the angles
        to be spread evenly over the half-circle.
        """
        place = torch.arange(-self._detectors, self._detectors, dtype=torch.float64)
        ramp = torch.where(place % 2 != 0, -1 / (math.pi * place) ** 2, 0.0)
        ramp[self._detectors] = 0.25
        response: Tensor = torch.fft.rfft(ramp.roll(-self._detectors)).real.to(y)
        spectrum: Tensor = torch.fft.rfft(y, n=2 * self._detectors) * response
        filtered: Tensor = torch.fft.irfft(spectrum, n=2 * self._detectors)
        scale = math.pi / len(self.angles) / self._scale**2
        return self.adjoint(filtered[..., : self._detectors]) * scale

    def _shadows(self) -> Iterator[tuple[Tensor, Constant]]:
        yield from self._kept
        yield from map(self._shadow, self.angles[len(self._kept) :].tolist())

    def _shadow(self, angle: float) -> tuple[Tensor, Constant]:
        """For one angle, (3, H W) numbers of the detectors that a pixel reaches, and its shares."""
        height, width = self.shape[1:]
        y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
        x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
        place = (x * math.cos(angle) + y * math.sin(angle)).flatten() + (self._detectors - 1) / 2
        bins = place.round().long() + torch.arange(-1, 2)[:, None]
        # The shadow is a box of width |cos| convolved with one of width |sin|.
        a, b = (max(abs(side), 1e-6) for side in (math.cos(angle), math.sin(angle)))
        edges = bins - place
        return bins, Constant((_below(edges + 0.5, a, b) - _below(edges - 0.5, a, b)) * self._scale)


def _below(u: Tensor, a: float, b: float) -> Tensor:
    """The share of a pixel's shadow that lies below ``u``."""
    corners = [(1, (a + b) / 2), (-1, (a - b) / 2), (-1, (b - a) / 2), (1, -(a + b) / 2)]
    return sum(
        (sign * (u + shift).clamp(min=0) ** 2 for sign, shift in corners), torch.zeros_like(u)
    ) / (2 * a * b)
