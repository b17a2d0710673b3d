"""Precision, recall, density and coverage: who lies in whose neighbourhood of features.

Precision and recall: arXiv:1904.06991, Eq. 1-2. Density and coverage: arXiv:2002.09797, Eq. 2-3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffit.evaluation.distances import squared_distances

PRECISION_K = 3
"""Neighbours that span the manifold of precision and recall, as ADM has it."""
DENSITY_K = 5
"""Neighbours of density and coverage, as their paper has it."""


class Neighbours(NamedTuple):
    """One value per image; each figure is the mean of its values."""

    precision: Tensor
    """(N,) 1 where a sample lies in the neighbourhood of a reference image."""
    recall: Tensor
    """(M,) 1 where a reference image lies in the neighbourhood of a sample."""
    density: Tensor
    """(N,) how many neighbourhoods of reference images hold the sample, divided by k."""
    coverage: Tensor
    """(M,) 1 where the neighbourhood of a reference image holds a sample."""


def neighbours(samples: Tensor, reference: Tensor) -> Neighbours:
    """(N, D) and (M, D) features to the four figures' values per image, in float64.

    A neighbourhood is the closed ball that reaches to an image's k-th nearest other image of its
    own set. Memory: one block of distances; time grows with (N + M)^2 D.
    """
    tight, wide = radii(reference, (PRECISION_K, DENSITY_K))
    (own,) = radii(samples, (PRECISION_K,))
    precision = torch.zeros(len(samples), dtype=torch.float64)
    density = torch.zeros(len(samples), dtype=torch.float64)
    recall = torch.zeros(len(reference), dtype=torch.bool)
    coverage = torch.zeros(len(reference), dtype=torch.bool)
    for rows, square in squared_distances(samples, reference):
        precision[rows] = (square <= tight).any(1).double()
        inside = square <= wide
        density[rows] = inside.sum(1).double() / DENSITY_K
        coverage |= inside.any(0)
        recall |= (square <= own[rows, None]).any(0)
    return Neighbours(precision, recall.double(), density, coverage.double())


def radii(features: Tensor, ks: tuple[int, ...]) -> Tensor:
    """(len(ks), N) squared distance of each image to its k-th nearest other image."""
    if len(features) <= max(ks):
        raise ValueError(f"{len(features)} images have no {max(ks)} nearest neighbours each")
    result = torch.empty(len(ks), len(features), dtype=torch.float64)
    for rows, square in squared_distances(features, features):
        square.diagonal(offset=rows.start).fill_(torch.inf)
        nearest = square.topk(max(ks), largest=False).values
        result[:, rows] = nearest[:, [k - 1 for k in ks]].T
    return result
