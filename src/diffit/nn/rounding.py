"""Weights as integers times a scale: which scale, and which integers."""

import torch
from torch import Tensor

from diffit.distributed import double

SHRINKS = tuple(1 - 0.025 * i for i in range(19))
"""Shares of the largest magnitude that the outermost integer is tried at: 1 to 0.55."""


COLUMNS = 128
"""Inputs that are rounded before the rest of the weights is corrected for all of them at once."""


def round_half_integers(values: Tensor, top: float) -> Tensor:
    """The nearest of -top, 1 - top, ..., top; with a half-integer ``top`` these are halves."""
    shift = top % 1
    return (values + shift).round_().sub_(shift).clamp_(-top, top)


def fit_scale(weight: Tensor, top: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The scale of each group that keeps its weights best, in least squares.

    Several scales below the one that just holds the largest weight are tried.

    Args:
        weight: (..., n) groups of n weights that share a scale.
        top: largest integer, or half-integer, that a weight may become.
        dtype: the precision that scales are kept in; weights are rounded on the grid of the scale
            as it is kept, so that a coarse one costs next to nothing.

    Returns:
        (...) scales, at least 0; 0 where all weights of a group are 0.
    """
    weight = weight.float()
    widest = weight.abs().amax(-1) / top
    best, least = widest.to(dtype), torch.full_like(widest, torch.inf)
    for shrink in SHRINKS:
        scale = (shrink * widest).to(dtype)
        codes = nearest(weight, scale[..., None], top)
        error = (codes * scale.float()[..., None] - weight).square_().sum(-1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def nearest(weight: Tensor, scale: Tensor, top: float) -> Tensor:
    """Weights over their scales, rounded; float32. ``scale`` is broadcast."""
    return round_half_integers(weight.float() / _divisor(scale.float()), top)


def compensated(
    weight: Tensor, scale: Tensor, top: float, gram: Tensor, *, damping: float = 0.01
) -> Tensor:
    """Weights over their scales, rounded so that the layer's output keeps best.

    One input after the other is rounded, the largest first, and what that changes in the output is
    taken back, as far as the other inputs are correlated with it, by those that are still to come:
    GPTQ (arXiv:2210.17323, Eq. 2 and 3; the Cholesky form of its section 3.3). Where inputs are
    uncorrelated this is `nearest`.

    Args:
        weight: (out, in).
        scale: broadcastable to ``weight``.
        top: as of `fit_scale`.
        gram: (in, in) sum of the outer products of inputs.
        damping: share of the mean of the gram's diagonal that is added to it.

    Returns:
        (out, in) integers, or half-integers, in float32.
    """
    kind = double(weight.device)
    order = gram.diagonal().argsort(descending=True)
    rest = weight.to(kind)[:, order]
    scale = scale.to(kind).expand_as(weight)[:, order]
    upper = _upper(gram.to(kind)[order][:, order], damping)
    codes = torch.empty_like(rest)
    for first in range(0, len(order), COLUMNS):
        last = min(first + COLUMNS, len(order))
        errors = rest.new_empty(len(rest), last - first)
        for i in range(first, last):
            codes[:, i] = round_half_integers(rest[:, i] / _divisor(scale[:, i]), top)
            error = (rest[:, i] - codes[:, i] * scale[:, i]) / upper[i, i]
            rest[:, i:last].addr_(error, upper[i, i:last], alpha=-1)
            errors[:, i - first] = error
        rest[:, last:].addmm_(errors, upper[first:last, last:], alpha=-1)
    found = torch.empty_like(codes)
    found[:, order] = codes
    return found.float()


def _upper(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of a damped gram."""
    mean = float(gram.diagonal().mean())
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    damped = gram + (damping * mean if mean > 0 else 1.0) * eye
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


def _divisor(scale: Tensor) -> Tensor:
    """A scale to divide by: weights of 0 have the scale 0."""
    return torch.where(scale > 0, scale, 1.0)
