"""Distances of all pairs of features: fast in float32, and exact where a decision is close.

A float32 matrix product gives |x - y|^2 within a bound that is known, so that most questions about
a distance (is it below this radius? is it among the nearest?) are settled by it. The few that the
bound leaves open are settled in float64. Answers are those of float64 throughout.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 2048
"""Rows and columns of the matrix of pairs that are held at once."""
GATHERED = 256
"""Pairs whose exact distance is computed at once."""
SPARE = 3
"""Candidates for nearest neighbours beyond those that are asked for."""
_ROUNDING = 2.0**-24

Step = Callable[[int, int], None]
"""Told how many blocks of pairs are done, and how many there are."""


class Pairs:
    """All pairs of (N, D) and (M, D) features of any float type.

    Memory: one block of pairs, beside the features themselves.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        # Distances do not see a common shift, and the bound grows with the norms.
        self._centre = y.mean(0)

    def block(self, rows: slice, columns: slice) -> tuple[Tensor, float]:
        """Squared distances of a block in float32, and by how much they may be wrong."""
        a = (self.x[rows] - self._centre).float()
        b = (self.y[columns] - self._centre).float()
        a2, b2 = (part.square().sum(1, dtype=torch.float64) for part in (a, b))
        square = (a @ b.T).mul_(-2).add_(a2.float()[:, None]).add_(b2.float()).clamp_(min=0)
        # A dot product of D terms is wrong by D roundings of |a||b| at most; 32 for all the rest.
        slack = (self.x.shape[1] + 32) * _ROUNDING * float(a2.max() + b2.max())
        return square, slack

    def exact(self, i: Tensor, j: Tensor) -> Tensor:
        """(P,) squared distances of the pairs (i, j) in float64."""
        result = torch.empty(len(i), dtype=torch.float64)
        for first in range(0, len(i), GATHERED):
            part = slice(first, first + GATHERED)
            gap = self.x[i[part]].double() - self.y[j[part]].double()
            result[part] = gap.square().sum(1)
        return result


def blocks(count: int) -> list[slice]:
    """0 .. count in slices of `BLOCK`."""
    return [slice(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


def radii(features: Tensor, ks: tuple[int, ...], step: Step | None = None) -> Tensor:
    """(len(ks), N) squared distance of each image to its k-th nearest other image, in float64."""
    count, most = len(features), max(ks)
    if count <= most:
        raise ValueError(f"{count} images have no {most} nearest neighbours each")
    pairs = Pairs(features, features)
    nearest = _Nearest(count, min(count - 1, most + SPARE))
    parts, slack = blocks(count), 0.0
    for done, rows in enumerate(parts):
        for columns in parts[done:]:
            square, wrong = pairs.block(rows, columns)
            slack = max(slack, wrong)
            if rows == columns:
                square.fill_diagonal_(torch.inf)
            else:
                nearest.update(columns, rows, square.T)
            nearest.update(rows, columns, square)
        if step:
            step(done + 1, len(parts))
    return _settled(pairs, nearest, slack, ks)


class _Nearest:
    """For each of ``count`` images the nearest others so far, by distances in float32."""

    def __init__(self, count: int, wanted: int) -> None:
        self.square = torch.full((count, wanted), torch.inf)
        self.index = torch.zeros(count, wanted, dtype=torch.int64)

    def update(self, rows: slice, columns: slice, square: Tensor) -> None:
        """Look at the block of pairs (rows, columns) too."""
        best, place = square.topk(min(self.square.shape[1], square.shape[1]), largest=False)
        both = torch.cat((self.square[rows], best), 1)
        index = torch.cat((self.index[rows], place + columns.start), 1)
        self.square[rows], kept = both.topk(self.square.shape[1], largest=False)
        self.index[rows] = index.gather(1, kept)


def _settled(pairs: Pairs, nearest: _Nearest, slack: float, ks: tuple[int, ...]) -> Tensor:
    """Exact radii from the candidates; rows where another image might be nearer are redone."""
    count, wanted = nearest.square.shape
    i = torch.arange(count).repeat_interleave(wanted)
    exact = pairs.exact(i, nearest.index.flatten()).reshape(count, wanted).sort(1).values
    farthest = exact[:, max(ks) - 1]
    beaten = nearest.square[:, -1].double() - slack < farthest
    # No distance is below 0, and there is nobody else where all others are candidates.
    doubtful = beaten & (farthest > 0) & (wanted < count - 1)
    columns = torch.arange(count)
    for row in doubtful.nonzero().flatten().tolist():
        others = columns[columns != row]
        square = pairs.exact(torch.full_like(others, row), others)
        exact[row, : max(ks)] = square.topk(max(ks), largest=False, sorted=True).values
    return exact[:, [k - 1 for k in ks]].T.contiguous()


def within(
    pairs: Pairs, rows: slice, columns: slice, found: tuple[Tensor, float], limit: Tensor
) -> Tensor:
    """Whether each pair of a block is no farther apart than its limit.

    Args:
        found: what `Pairs.block` gave for these rows and columns.
        limit: float64 squared radii: (R, 1), one for each row, or (1, C), one for each column.
    """
    square, slack = found
    near = limit.float()
    inside = square <= near - slack
    i, j = ((square <= near + slack) ^ inside).nonzero(as_tuple=True)
    if len(i):
        exact = pairs.exact(i + rows.start, j + columns.start)
        inside[i, j] = exact <= limit.expand(square.shape)[i, j]
    return inside
