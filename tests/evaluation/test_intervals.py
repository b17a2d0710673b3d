"""Intervals are as wide as the spread of repeated experiments."""

import pytest
import torch

from diffit.evaluation import intervals
from diffit.evaluation.distances import frechet, kid
from diffit.evaluation.moments import Gaussian, Moments

REFERENCE = Gaussian(torch.zeros(3).double(), torch.eye(3).double())


def sample(seed: int, count: int = 400) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=draws, dtype=torch.float64) * 1.2 + 0.5


def moments(x: torch.Tensor) -> Moments:
    found = Moments(x.shape[1])
    found.update(x)
    return found


def test_resamples_follow_from_the_seed_and_hold_the_number_of_images():
    counts = intervals.resamples(50, 20, seed=1)
    assert counts.shape == (20, 50)
    assert (counts.sum(1) == 50).all()
    assert torch.equal(counts, intervals.resamples(50, 20, seed=1))
    assert torch.equal(counts[:5], intervals.resamples(50, 5, seed=1))
    assert not torch.equal(counts, intervals.resamples(50, 20, seed=2))


def test_the_interval_of_a_proportion_has_the_binomial_width():
    values = (torch.arange(400) % 4 == 0).double()
    found = intervals.of_mean(values, draws=1000, seed=0)
    expected = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert found.low == pytest.approx(0.25 - expected, abs=0.006)
    assert found.high == pytest.approx(0.25 + expected, abs=0.006)


def test_images_that_all_agree_still_leave_doubt():
    sure = intervals.of_mean(torch.ones(100), draws=50, seed=0)
    assert sure.high == 1
    assert sure.low == pytest.approx(0.025 ** (1 / 100))
    none = intervals.of_mean(torch.zeros(100), draws=50, seed=0)
    assert (none.low, none.high) == (0, pytest.approx(1 - sure.low))
    # Density is no proportion: equal values other than 0 and 1 have no spread to speak of.
    flat = intervals.of_mean(torch.full((10,), 0.4), draws=50, seed=0)
    assert flat.low == pytest.approx(0.4)


def test_frechet_intervals_match_the_spread_of_repeated_experiments():
    values = torch.tensor([frechet(moments(sample(s)).gaussian(), REFERENCE) for s in range(200)])
    spread = 2 * 1.96 * float(values.std())
    widths, covers = [], []
    truth = 3 * (0.25 + 0.04)
    for seed in range(8):
        x = sample(1000 + seed)
        value = frechet(moments(x).gaussian(), REFERENCE)
        found = intervals.of_frechet(x, REFERENCE, value, draws=100, seed=0)
        widths.append(found.high - found.low)
        covers.append(found.low <= truth <= found.high)
    assert float(torch.tensor(widths).mean()) == pytest.approx(spread, rel=0.2)
    assert sum(covers) >= 6


def test_the_jackknife_over_groups_agrees_with_the_bootstrap():
    bootstrap, jackknife = [], []
    for seed in range(12):
        x = sample(seed)
        value = frechet(moments(x).gaussian(), REFERENCE)
        groups = [moments(x[g::10]) for g in range(10)]
        jack = intervals.of_frechet_groups(groups, REFERENCE, value)
        boot = intervals.of_frechet(x, REFERENCE, value, draws=60, seed=0)
        # Student's quantile makes up for ten groups alone; the standard errors are compared.
        jackknife.append((jack.high - jack.low) / intervals.T_9)
        bootstrap.append((boot.high - boot.low) / intervals.Z)
    ratio = float(torch.tensor(jackknife).mean() / torch.tensor(bootstrap).mean())
    assert ratio == pytest.approx(1, rel=0.2)


def test_kid_intervals_match_the_spread_of_repeated_experiments():
    reference = sample(5000, 2000) * 0.8
    values = torch.tensor([float(kid(sample(s), reference)) for s in range(60)])
    replicates = kid(sample(9000), reference, intervals.resamples(400, 100, seed=0))
    found = intervals.of_kid(replicates, 0.3)
    assert (found.low + found.high) / 2 == pytest.approx(0.3)
    assert float(replicates.std()) == pytest.approx(float(values.std()), rel=0.4)


def test_an_interval_says_how_it_was_found():
    x = sample(0)
    assert (
        "bootstrap over samples" in intervals.of_frechet(x, REFERENCE, 1.0, draws=3, seed=0).method
    )
    groups = [moments(x[g::10]) for g in range(10)]
    assert "jackknife over 10 groups" in intervals.of_frechet_groups(groups, REFERENCE, 1.0).method
