"""Distances between two sets of features: Frechet distance and kernel distance."""

from collections.abc import Iterable

import torch
from torch import Tensor

from diffit.draws import generator
from diffit.evaluation.moments import Gaussian

BLOCK = 1024
"""Rows of a pair matrix held at once."""


def frechet(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), squared (arXiv:1706.08500, Eq. 6).

    With S_i = M_i M_i^T the trace of the root is the sum of the singular values of M1^T M2. This
    form stays accurate and real where a covariance is singular, as it is for fewer images than
    features; a general matrix square root does not.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"{len(first.mean)} features against {len(second.mean)}")
    shift = (first.mean - second.mean).square().sum()
    overlap = torch.linalg.svdvals(first.root.T @ second.root).sum()
    distance = shift + first.covariance.trace() + second.covariance.trace() - 2 * overlap
    return max(0.0, float(distance))


def frechet_spread(samples: Iterable[Gaussian], reference: Gaussian) -> Tensor:
    """(R,) Frechet distances of many Gaussians to one, for the spread among them.

    The trace of the root is the sum of the roots of the eigenvalues of M2^T S1 M2, several times
    faster than `frechet`; roots of eigenvalues near 0 lose digits, which a spread can spare.
    """
    root = reference.root
    distances = []
    for one in samples:
        shift = (one.mean - reference.mean).square().sum()
        values = torch.linalg.eigvalsh(root.T @ one.covariance @ root)
        overlap = values.clamp(min=0).sqrt().sum()
        traces = one.covariance.trace() + reference.covariance.trace()
        distances.append(shift + traces - 2 * overlap)
    return torch.stack(distances)


def kid(samples: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (arXiv:1801.01401, Eq. 4).

    Args:
        samples: (N, D) features; N of 2 or more.
        reference: (M, D) features; M of 2 or more.
        weights: (R, N) how often each sample counts in R resamples; None counts each once.
            Pairs of a sample with itself never count, so that no resample is biased upward.

    Returns:
        (R,) float64 estimates, whose expectation is 0 for two sets of one distribution.
    """
    if len(samples) < 2 or len(reference) < 2:
        raise ValueError(f"KID needs 2 images a side, not {len(samples)} and {len(reference)}")
    if weights is None:
        weights = torch.ones(1, len(samples))
    weights = weights.double()
    total, squares = weights.sum(1), weights.square().sum(1)
    ones = torch.ones(1, len(reference), dtype=torch.float64)
    within = _pair_sum(samples, samples, weights, weights, diagonal=False)
    within_reference = _pair_sum(reference, reference, ones, ones, diagonal=False)
    across = _pair_sum(samples, reference, weights, ones.expand(len(weights), -1), diagonal=True)
    m = len(reference)
    return (
        within / (total.square() - squares)
        + within_reference / (m * (m - 1))
        - 2 * across / (total * m)
    )


def kid_of_subsets(
    samples: Tensor, reference: Tensor, *, size: int, subsets: int, seed: int
) -> Tensor:
    """(subsets,) KID of random subsets of ``size`` images a side, drawn without replacement.

    The customary figure is their mean. They overlap, so that their spread is no standard error.
    """
    if size > min(len(samples), len(reference)):
        raise ValueError(f"subsets of {size} from {len(samples)} and {len(reference)} images")
    values = []
    for number in range(subsets):
        draw = generator(seed, number, "kid subset")
        ours = torch.from_numpy(draw.choice(len(samples), size, replace=False))
        theirs = torch.from_numpy(draw.choice(len(reference), size, replace=False))
        values.append(kid(samples[ours], reference[theirs]))
    return torch.cat(values)


def _pair_sum(x: Tensor, y: Tensor, u: Tensor, v: Tensor, *, diagonal: bool) -> Tensor:
    """(R,) sums over i, j of u_ri k(x_i, y_j) v_rj; without i = j where ``diagonal`` is false."""
    total = torch.zeros(len(u), dtype=torch.float64)
    y = y.double()
    for first in range(0, len(x), BLOCK):
        rows = slice(first, min(first + BLOCK, len(x)))
        kernel = (x[rows].double() @ y.T / x.shape[1] + 1) ** 3
        if not diagonal:
            kernel.diagonal(offset=first).zero_()
        total += ((u[:, rows] @ kernel) * v).sum(1)
    return total
