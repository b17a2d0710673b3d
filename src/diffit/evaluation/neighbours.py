"""Precision, recall, density and coverage: who lies in whose neighbourhood of features.

Precision and recall: arXiv:1904.06991, Eq. 1-2. Density and coverage: arXiv:2002.09797, Eq. 2-3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffit.evaluation.pairs import Pairs, Step, blocks, radii, within

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


def neighbours(samples: Tensor, reference: Tensor, step: Step | None = None) -> Neighbours:
    """(N, D) and (M, D) features to the four figures' values per image, exact in float64.

    A neighbourhood is the closed ball that reaches to an image's k-th nearest other image of its
    own set. Memory: some blocks of distances; time grows with (N^2 / 2 + N M + M^2 / 2) D.
    """
    tight, wide = radii(reference, (PRECISION_K, DENSITY_K))
    (own,) = radii(samples, (PRECISION_K,), step)
    precision = torch.zeros(len(samples), dtype=torch.bool)
    density = torch.zeros(len(samples), dtype=torch.float64)
    recall = torch.zeros(len(reference), dtype=torch.bool)
    coverage = torch.zeros(len(reference), dtype=torch.bool)
    pairs = Pairs(samples, reference)
    for rows in blocks(len(samples)):
        for columns in blocks(len(reference)):
            found = pairs.block(rows, columns)
            near = within(pairs, rows, columns, found, tight[None, columns])
            precision[rows] |= near.any(1)
            near = within(pairs, rows, columns, found, wide[None, columns])
            density[rows] += near.sum(1).double() / DENSITY_K
            coverage[columns] |= near.any(0)
            near = within(pairs, rows, columns, found, own[rows, None])
            recall[columns] |= near.any(0)
    return Neighbours(precision.double(), recall.double(), density, coverage.double())
