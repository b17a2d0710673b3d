"""Distances of all pairs: fast, and exact to the last decision."""

import pytest
import torch

from diffit.evaluation import pairs
from diffit.evaluation.neighbours import neighbours
from diffit.evaluation.pairs import Pairs, blocks, radii, within


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", 16)


def features(count: int, dims: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


def squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.double()[:, None] - y.double()[None]).square().sum(2)


def brute_radii(x: torch.Tensor, k: int) -> torch.Tensor:
    square = squares(x, x).fill_diagonal_(torch.inf)
    return square.sort(1).values[:, k - 1]


@pytest.mark.parametrize("count", [6, 16, 41])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_radii_are_those_of_float64_whatever_the_offset(small_blocks, count, offset):
    x = features(count, 8, 0) + offset
    found = radii(x, (3, 5))
    expected = torch.stack([brute_radii(x, 3), brute_radii(x, 5)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_radii_among_equal_images_are_zero_and_ties_are_settled(small_blocks):
    x = features(5, 8, 1).repeat(8, 1)  # each image eight times
    assert radii(x, (3,)).max() == 0
    # Neighbours that float32 cannot tell apart.
    close = features(40, 8, 2) * 1e-5 + 3
    expected = brute_radii(close, 3)
    torch.testing.assert_close(radii(close, (3,))[0], expected, rtol=1e-12, atol=0)


def test_a_pair_on_the_rim_is_inside_and_a_hair_beyond_is_not(small_blocks):
    x, y = features(20, 8, 3), features(30, 8, 4)
    exact = squares(x, y)
    table = Pairs(x, y)
    for limit, expected in ((exact, True), (exact * (1 - 1e-12), False)):
        for rows in blocks(20):
            for columns in blocks(30):
                square, slack = table.block(rows, columns)
                for j in range(columns.start, columns.stop):
                    column = square[:, [j - columns.start]], slack
                    limits = limit[rows, j : j + 1]
                    inside = within(table, rows, slice(j, j + 1), column, limits)
                    assert bool((inside == expected).all())


def test_the_four_figures_equal_those_of_all_pairs_in_float64(small_blocks):
    x, y = features(70, 12, 5), features(50, 12, 6) * 0.9 + 0.1
    found = neighbours(x, y)
    square = squares(x, y)
    tight, wide, own = brute_radii(y, 3), brute_radii(y, 5), brute_radii(x, 3)
    assert torch.equal(found.precision, (square <= tight).any(1).double())
    assert torch.equal(found.recall, (square <= own[:, None]).any(0).double())
    torch.testing.assert_close(found.density, (square <= wide).sum(1).double() / 5)
    assert torch.equal(found.coverage, (square <= wide).any(0).double())


def test_too_few_images_have_no_radius():
    with pytest.raises(ValueError, match="3 images have no 3 nearest neighbours"):
        radii(features(3, 2, 0), (3,))
