"""Likelihoods by the probability-flow ODE (arXiv:2011.13456, Section 4.3 and Appendix D.2).

With u = ln sigma the flow of x = clean + sigma * noise is dx/du = x - D(x, sigma), and the log
density changes along it by minus the divergence d - tr dD/dx (arXiv:1806.07366). That holds for
every formulation; they differ in the ends of the path and in the prior at its upper one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise, over
from diffit.diffusion.formulation import Formulation
from diffit.diffusion.laws import Discrete, LogNormal

PUBLISHED_EPS = 1e-5
"""Time at which the published likelihoods start."""
OFFSET_BITS = 7.0
"""Bits of a level of 256 in pixels from -1 to 1, whose width is 2 / 256."""

# Dormand and Prince (1980): nodes, stages, and the difference of the fifth and fourth order.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (
    71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40,
)  # fmt: skip

_Slopes = tuple[Tensor, Tensor]
_Field = Callable[[Tensor, Tensor], _Slopes]


class Path(NamedTuple):
    """Where the flow leads.

    Attributes:
        x: (B, C, H, W) at the other end.
        change: (B,) integral of the divergence, in nats: log p(start) - log p(end).
        nfe: evaluations of the denoiser.
    """

    x: Tensor
    change: Tensor
    nfe: int


class Likelihood(NamedTuple):
    """What an image's density is.

    Attributes:
        log_density: (B,) in nats, of the image as the published state x_t at the lower end.
        bits: (B,) bits per dimension, with `OFFSET_BITS`.
        latent: (B, C, H, W) the published state at the upper end, drawn from the prior.
        nfe: evaluations of the denoiser.
    """

    log_density: Tensor
    bits: Tensor
    latent: Tensor
    nfe: int


def likelihood(
    denoise: Denoise,
    images: Tensor,
    formulation: Formulation,
    *,
    probe: Tensor | None,
    low: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Likelihood:
    """Log density and bits per dimension of images, as the published code measures them.

    Args:
        denoise: (x, sigma) to the estimate of the clean image, without guidance, differentiable
            in x; it gets a (B,) sigma.
        images: (B, C, H, W) in [-1, 1], dequantised if bits are to bound a code length.
        formulation: whose state and prior they are.
        probe: (B, C, H, W) of +1 and -1 estimates the divergence without bias (Hutchinson); None
            computes it exactly, at C H W times the cost.
        low: sigma at which the image is taken to lie; `lower_end` by default.
        rtol: relative tolerance of each image's own steps; ``atol`` is the absolute one.
    """
    start = lower_end(formulation) if low is None else low
    ends = torch.tensor([start, formulation.sigma_max], dtype=torch.float64)
    signal = formulation.signal(ends)
    x = images.double() / signal[0]
    path = flow(denoise, x, start, formulation.sigma_max, probe=probe, rtol=rtol, atol=atol)
    dims = images[0].numel()
    std = float(formulation.prior_std(ends[1]))
    square = path.x.flatten(1).square().sum(1)
    prior = -square / (2 * std**2) - dims / 2 * math.log(2 * math.pi * std**2)
    # Of x_t = a x, whose density is narrower by a in each dimension.
    density = prior + path.change - dims * float(signal[0].log())
    bits = OFFSET_BITS - density / (dims * math.log(2))
    return Likelihood(density, bits, path.x * signal[1], path.nfe)


def lower_end(formulation: Formulation) -> float:
    """Level where a likelihood starts: time 1e-5, or the lowest one of rows without such a time."""
    law = formulation.law
    if formulation.restores:
        raise ValueError(f"formulation {formulation.name} restores images and has no likelihood")
    if isinstance(law, Discrete | LogNormal):
        return formulation.sigma_min
    return float(law.sigma(torch.tensor(PUBLISHED_EPS, dtype=torch.float64)))


def flow(
    denoise: Denoise,
    x: Tensor,
    start: float,
    stop: float,
    *,
    probe: Tensor | None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    most: int = 10_000,
) -> Path:
    """Follow the probability flow from one sigma to another, up or down, with its divergence.

    Dormand-Prince 5(4); each image has steps of its own, so that none depends on its batch.

    Args:
        denoise, probe, rtol, atol: as in `likelihood`.
        x: (B, C, H, W) at ``start``.
        start: sigma above 0; likewise ``stop``.
        most: steps, taken or refused, after which it gives up with ValueError.
    """
    if not (0 < start < math.inf and 0 < stop < math.inf):
        raise ValueError(f"the flow leads between levels above 0, not from {start:g} to {stop:g}")
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"rtol ({rtol:g}) and atol ({atol:g}) must be above 0")
    field = _field(denoise, probe)
    end, sign = math.log(stop), math.copysign(1.0, math.log(stop / start))
    x, u = x.double(), x.new_full((len(x),), math.log(start), dtype=torch.float64)
    change, step = torch.zeros_like(u), torch.full_like(u, 0.05 * sign)
    slopes, nfe = field(x, u), 1
    for _ in range(most):
        left = end - u
        if not left.any():
            return Path(x, change, nfe)
        step = torch.where(step.abs() < left.abs(), step, left)
        trial, error, last = _try(field, (x, change), u, step, slopes, (rtol, atol))
        nfe += 6
        good = error <= 1
        x, change = torch.where(over(good, x) > 0, trial[0], x), torch.where(good, trial[1], change)
        slopes = (
            torch.where(over(good, x) > 0, last[0], slopes[0]),
            torch.where(good, last[1], slopes[1]),
        )
        # The last step lands on the end itself, without the rounding of u + step.
        u = torch.where(good, torch.where(step == left, torch.full_like(u, end), u + step), u)
        # Safety 0.9 and bounds as usual for this pair; not a number shortens the step.
        factor = (0.9 * error.clamp(min=1e-10) ** -0.2).nan_to_num(0.2).clamp(0.2, 10.0)
        step = step * torch.where(good, factor, factor.clamp(max=1.0))
        step = torch.where(step == 0, torch.full_like(step, 0.05 * sign), step)
    raise ValueError(
        f"the flow did not arrive within {most} steps at rtol {rtol:g} and atol {atol:g}; the "
        "network may give values that are not finite, or the tolerance is too tight"
    )


def rademacher(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A probe of +1 and -1, each equally likely, float64 on the CPU."""
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def dequantised(images: Tensor, uniform: Tensor) -> Tensor:
    """uint8 images to [-1, 1], each value spread over its level by ``uniform`` draws in [0, 1)."""
    return (images.double() + uniform) / 128 - 1


def _field(denoise: Denoise, probe: Tensor | None) -> _Field:
    """(x, u) to dx/du and the divergence of that."""

    def field(x: Tensor, u: Tensor) -> _Slopes:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            clean = denoise(leaf, u.exp()).double()
            trace = _trace(clean, leaf, probe)
        return x - clean.detach(), leaf[0].numel() - trace

    return field


def _trace(clean: Tensor, x: Tensor, probe: Tensor | None) -> Tensor:
    """(B,) trace of d clean / dx, or its estimate by a probe."""
    if probe is not None:
        probe = probe.to(clean)
        (along,) = torch.autograd.grad((clean * probe).sum(), x)
        return (along * probe).flatten(1).sum(1)
    flat, total = clean.flatten(1), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=i + 1 < flat.shape[1])
        total += row.flatten(1)[:, i]
    return total


def _try(
    field: _Field,
    state: _Slopes,
    u: Tensor,
    step: Tensor,
    first: _Slopes,
    tolerance: tuple[float, float],
) -> tuple[_Slopes, Tensor, _Slopes]:
    """One step: the new state, (B,) error in units of the tolerance, and the slopes there."""
    x, change = state
    along, rates = [first[0]], [first[1]]
    for node, weights in zip(_NODES[1:], _STAGES, strict=True):
        moved = x + over(step, x) * _weighted(weights, along)
        drifted = change + step * _weighted(weights, rates)
        slope, rate = field(moved, u + node * step)
        along.append(slope)
        rates.append(rate)
    rtol, atol = tolerance
    missed = over(step, x) * _weighted(_ERROR, along)
    scale = atol + rtol * torch.maximum(x.abs(), moved.abs())
    of_x = (missed / scale).flatten(1).square().mean(1).sqrt()
    # The divergence counts per dimension: as one number among all pixels it would not count.
    dims = x[0].numel()
    of_change = (step * _weighted(_ERROR, rates)).abs() / dims
    of_change = of_change / (atol + rtol * torch.maximum(change.abs(), drifted.abs()) / dims)
    return (moved, drifted), torch.maximum(of_x, of_change), (along[-1], rates[-1])


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total = total + weight * slope
    return total
