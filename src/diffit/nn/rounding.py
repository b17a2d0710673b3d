"""Real numbers as integers times a scale: the scales of weights and of activations."""

import torch
from torch import Tensor

SHRINKS = tuple(1 - 0.025 * i for i in range(19))
"""Shares of the largest magnitude that the outermost integer is tried at: 1 to 0.55."""


def round_half_integers(values: Tensor, top: float) -> Tensor:
    """The nearest of -top, 1 - top, ..., top; with a half-integer ``top`` these are halves."""
    shift = top % 1
    return (values + shift).round_().sub_(shift).clamp_(-top, top)


def fit_scale(
    weight: Tensor,
    top: float,
    *,
    importance: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The scale of each group that keeps its weights best.

    The squared error of the rounded weights, weighted by ``importance``, is taken at several
    scales below the one that just holds the largest weight, and the best one is kept. With the mean
    square of each input as importance it is the error of the layer's output, inputs taken as
    uncorrelated.

    Args:
        weight: (..., n) groups of n weights that share a scale.
        top: largest integer, or half-integer, that a weight may become.
        importance: broadcastable to ``weight``; None: all weights count alike.
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
        error = (rounded(weight, scale, top) * scale.float()[..., None] - weight).square_()
        error = error.sum(-1) if importance is None else (error * importance).sum(-1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def rounded(weight: Tensor, scale: Tensor, top: float) -> Tensor:
    """(..., n) weights over their (...) scales, rounded, in float32."""
    scale = scale.float()[..., None]
    return round_half_integers(weight.float() / torch.where(scale > 0, scale, 1.0), top)


def round_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each token as int8 times the scale that just holds its largest number.

    Args:
        x: (M, n) tokens.

    Returns:
        (M, n) int8 in -127 .. 127, and (M, 1) float32 scales; tokens that are not finite have the
        scale NaN.
    """
    x = x.float()
    scale = x.abs().amax(1, keepdim=True).div_(127)
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    # Not by the scale of a token of zeros, nor by one whose inverse is infinite.
    inverse = torch.where(scale > 1e-37, 1 / scale, 0.0)
    return (x * inverse).round_().to(torch.int8), scale
