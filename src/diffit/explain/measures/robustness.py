"""How far two explanations of one image are apart, and how far a small change can move them.

Explanations are (B, n) maps of n tokens or pixels. The divergences see them as distributions: they
must not be negative, and are divided by their sums.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffit import draws
from diffit.errors import DataError


def tokens_of(share: float, n: int) -> int:
    """How many tokens a share of n is, to the nearest, 1 at least: the k of a top-k overlap."""
    if not 0 < share <= 1:
        raise DataError(f"{share:g} is no share of the tokens; it must lie in (0, 1]")
    return max(1, math.floor(share * n + 0.5))


def overlap(first: Tensor, second: Tensor, k: int) -> Tensor:
    """(B,) share of the k largest entries of two (B, n) maps that they have in common.

    Among equal entries the one that comes first counts as larger.
    """
    _check(first, second)
    n = first.shape[1]
    if not 1 <= k <= n:
        raise DataError(f"k is {k}, but the maps have {n} entries; choose k from 1 to {n}")
    return (top(first, k) & top(second, k)).sum(1).double() / k


def top(maps: Tensor, k: int) -> Tensor:
    """(B, n) bool: the k largest entries of each map, ties to the one that comes first."""
    places = maps.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(maps, dtype=torch.bool).scatter_(1, places, True)


def renyi(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """(B,) Renyi divergence D_alpha(first || second) of order alpha >= 1, in nats; 1 gives KL.

    Infinite where ``second`` gives no weight to what ``first`` has.
    """
    if not alpha >= 1 or math.isinf(alpha):
        raise DataError(f"the order of a Renyi divergence is {alpha:g}; it must be 1 or more")
    _check(first, second)
    p, q = _distribution(first), _distribution(second)
    if alpha == 1:
        # xlogy: 0 log 0 is 0.
        divergence = (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(1)
    else:
        terms = alpha * p.log() + (1 - alpha) * q.log()
        # Where ``first`` has no weight nothing counts: 0^alpha 0^(1 - alpha) would be no number.
        divergence = terms.masked_fill(p == 0, -math.inf).logsumexp(1) / (alpha - 1)
    return torch.clamp(divergence, min=0)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """(B,) Kullback-Leibler divergence of two (B, n) maps, in nats."""
    return renyi(first, second, 1.0)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """(B,) Spearman's rank correlation; equal entries share their mean rank.

    Not a number where a map is constant, which has no ranks.
    """
    _check(first, second)
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (_ranks(first), _ranks(second)))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def sensitivity_max(
    explain: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    radius: float,
    samples: int = 10,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """(B,) largest relative change of a map under uniform noise (Yeh et al., arXiv:1901.09392).

    max over the samples of ||E(x + d) - E(x)|| / ||E(x)|| with d uniform in [-radius, radius]^d and
    the images kept in [-1, 1]: a lower bound of the true maximum.

    Args:
        explain: images to (B, n) maps, of a class that does not change with the noise.
        images: (B, C, H, W) in [-1, 1].
        radius: of the noise, for pixels in [-1, 1]; 0.04 is the customary 0.02 for [0, 1].
        samples: draws per image.
        seed, numbers: draws of image b follow from (seed, numbers[b]); 0, 1, ... by default.
    """
    if not radius > 0 or samples < 1:
        raise DataError(
            f"sensitivity needs a radius above 0 and a sample at least, not {radius:g} and "
            f"{samples}"
        )
    numbers = range(len(images)) if numbers is None else numbers
    generators = [draws.generator(seed, int(n), "sensitivity") for n in numbers]
    with torch.no_grad():
        plain = explain(images).double()
    # A map of zeros has no relative change; any change of it is infinite.
    scale, worst = plain.norm(dim=1), torch.zeros(len(images), dtype=torch.float64)
    for _ in range(samples):
        noise = torch.stack(
            [torch.from_numpy(g.uniform(-radius, radius, images.shape[1:])) for g in generators]
        )
        moved = (images + noise.to(images)).clamp(-1, 1)
        with torch.no_grad():
            change = (explain(moved).double() - plain).norm(dim=1)
        worst = torch.maximum(worst, torch.where(change == 0, 0, change / scale).cpu())
    return worst


def _distribution(maps: Tensor) -> Tensor:
    maps = maps.double()
    total = maps.sum(1, keepdim=True)
    if bool((maps < 0).any()) or bool((total <= 0).any()):
        raise DataError(
            "a divergence needs maps that are not negative and not all zero; take the positive "
            "part of signed maps first"
        )
    return maps / total


def _ranks(maps: Tensor) -> Tensor:
    """(B, n) float64 ranks from 0, equal entries at the mean of theirs."""
    ordered = maps.sort(dim=1).values
    before = torch.searchsorted(ordered, maps.contiguous())
    after = torch.searchsorted(ordered, maps.contiguous(), right=True)
    return (before + after - 1).double() / 2


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape or not first.numel():
        raise DataError(
            f"maps are {tuple(first.shape)} and {tuple(second.shape)}; both must be (images, "
            "entries) of one size"
        )
    if not bool(first.isfinite().all() & second.isfinite().all()):
        raise DataError("a map holds values that are not finite; it compares with nothing")
