"""Draws follow from (seed, position, purpose) alone."""

import numpy as np
import pytest
import torch

from diffit.draws import generator, integers, normal, uniform


def test_a_draw_depends_on_its_position_alone() -> None:
    together = normal(7, range(10), "noise", (3, 4))
    assert together.shape == (10, 3, 4)
    assert together.dtype == torch.float32
    for n in (0, 3, 9):
        assert torch.equal(normal(7, [n], "noise", (3, 4))[0], together[n])
    assert torch.equal(normal(7, [9, 0, 3], "noise", (3, 4)), together[[9, 0, 3]])


@pytest.mark.parametrize("other", [(8, 3, "noise"), (7, 4, "noise"), (7, 3, "sigma")])
def test_seed_number_and_purpose_each_make_another_stream(other: tuple[int, int, str]) -> None:
    here = generator(7, 3, "noise").integers(1 << 62, size=8)
    there = generator(*other).integers(1 << 62, size=8)
    assert not np.intersect1d(here, there).size


def test_long_streams_of_neighbours_never_meet() -> None:
    # The position is a high word of the counter: 2^128 draws lie between two positions.
    first = generator(0, 0, "noise").integers(1 << 62, size=100_000)
    second = generator(0, 1, "noise").integers(1 << 62, size=100_000)
    assert not np.intersect1d(first, second).size


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, 2**80])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert torch.isfinite(normal(seed, [0, 2**40], "noise", (5,))).all()


def test_the_streams_are_philox_and_stay_so() -> None:
    # Recorded once: another value here would silently change every seeded picture.
    assert generator(1, 2, "noise").integers(1 << 32, size=3).tolist() == [
        555660926,
        3832197330,
        2166023597,
    ]


def test_normal_draws_are_unit_normal() -> None:
    draws = normal(3, range(400), "noise", (500,)).double()
    # 200,000 draws: the standard errors are 0.0022 (mean), 0.0016 (std), 0.011 (4th moment).
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.008
    assert abs((draws**4).mean() - 3) < 0.06
    rows = draws[:, :2]
    assert abs((rows[:, 0] * rows[:, 1]).mean()) < 0.2


def test_uniform_draws_fill_the_open_interval() -> None:
    draws = uniform(0, range(20_000), "sigma")
    assert draws.dtype == torch.float64
    assert 0 < draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    counts = torch.histc(draws, bins=10, min=0, max=1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 30  # chi-square, 9 degrees: p about 4e-4


@pytest.mark.parametrize("extreme", [0, (1 << 53) - 1])
def test_uniform_never_reaches_its_ends(monkeypatch: pytest.MonkeyPatch, extreme: int) -> None:
    class Fixed:
        def integers(self, high: int) -> int:
            return extreme

    monkeypatch.setattr("diffit.draws.generator", lambda *_: Fixed())
    assert 0 < uniform(0, [0], "sigma").item() < 1


def test_integers_lie_below_high_and_take_every_value() -> None:
    draws = integers(5, range(500), "label", 7)
    assert draws.dtype == torch.int64
    assert draws.unique().tolist() == list(range(7))


def test_no_numbers_give_no_rows() -> None:
    assert normal(0, [], "noise", (3, 2)).shape == (0, 3, 2)
    assert uniform(0, [], "sigma").shape == (0,)
    assert integers(0, [], "label", 3).shape == (0,)
