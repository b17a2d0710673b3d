"""Rules of layer-wise relevance propagation for the layers of a transformer (arXiv:2012.09838).

Each takes the relevance R of a layer's output and what the layer worked on, and gives that of its
inputs. Softmax, GELU and layer norm hand relevance on unchanged, and need no rule. In all of them
the first axis is the batch: no image's relevance depends on another image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-9
"""Added to each denominator, as the reference does, whatever its sign."""


class Rules(NamedTuple):
    """Two rules differ between plain LRP and that of transformer attribution."""

    linear: Callable[[Tensor, Tensor, Tensor], Tensor]
    residual: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / (b + 1e-9), and 0 where b is 0."""
    b, shifted = b.expand_as(a), b.expand_as(a) + TINY
    usable = (b != 0) & (shifted != 0)
    # The other denominators become 1, so that no gradient meets an infinite value.
    return torch.where(usable, a / torch.where(usable, shifted, 1), 0)


def linear_plain(relevance: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """alpha = 1, beta = 0: what raised the outputs shares the relevance; each sign of x by itself.

    Args:
        relevance: (B, ..., out).
        x: (B, ..., in), the layer's input.
        weight: (out, in); the bias takes no part.

    Returns:
        (B, ..., in).
    """
    total = torch.zeros_like(x)
    for part, positive in _raising(x, weight):
        share = divide(relevance, F.linear(part, positive))
        total = total + part * (share @ positive)
    return total


def linear_joint(relevance: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """As `linear_plain`, but both signs of x share one denominator."""
    parts = _raising(x, weight)
    share = divide(relevance, sum((F.linear(*part) for part in parts), torch.zeros(()).to(x)))
    first, second = (part * (share @ positive) for part, positive in parts)
    return first + second


def _raising(x: Tensor, weight: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The pairs of inputs and weights whose products are positive."""
    return (x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))


def residual_plain(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the terms of a + b: each in proportion to its part of the sum."""
    share = divide(relevance, a + b)
    return a * share, b * share


def residual_balanced(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """As `residual_plain`, then scaled so that the two totals keep the relevance.

    Where terms of opposite signs nearly cancel their parts explode; of each image the totals are
    brought to |sum R_a| and |sum R_b| over the sum of both, times sum R.
    """
    parts = residual_plain(relevance, a, b)
    sums = [_total(part) for part in parts]
    whole = sums[0].abs() + sums[1].abs()
    wanted = [divide(part.abs(), whole) * _total(relevance) for part in sums]
    first, second = (
        part * divide(goal, found) for part, goal, found in zip(parts, wanted, sums, strict=True)
    )
    return first, second


def _total(x: Tensor) -> Tensor:
    """(B, ...) to the sum of each row of the batch, with axes of length 1."""
    return x.sum(tuple(range(1, x.ndim)), keepdim=True)


def branch(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Relevance of a tensor x that was used twice."""
    return x * (divide(first, x) + divide(second, x))


def product(relevance: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the factors of x @ y, half of it each."""
    share = divide(relevance, x @ y)
    return x * (share @ y.mT) / 2, y * (x.mT @ share) / 2


def pixels(relevance: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """The z^B rule (arXiv:1512.02479) for the patch embedding, between each image's own extremes.

    Args:
        relevance: (B, width, rows, columns).
        image: (B, C, H, W).
        weight: (width, C, patch, patch), also the stride.

    Returns:
        (B, C, H, W).
    """
    patch = weight.shape[-1]
    low = image.amin((1, 2, 3), keepdim=True).expand_as(image)
    high = image.amax((1, 2, 3), keepdim=True).expand_as(image)
    terms = ((image, weight, 1), (low, weight.clamp(min=0), -1), (high, weight.clamp(max=0), -1))
    response = sum((sign * F.conv2d(x, w, stride=patch) for x, w, sign in terms), TINY)
    share = relevance / response
    spread = [sign * x * F.conv_transpose2d(share, w, stride=patch) for x, w, sign in terms]
    return spread[0] + spread[1] + spread[2]


PLAIN = Rules(linear_plain, residual_plain)
BALANCED = Rules(linear_joint, residual_balanced)
