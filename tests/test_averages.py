"""Decays of moving averages, and lengths rebuilt from stored ones, against closed forms."""

import numpy as np
import pytest

from diffit.averages import LONGEST, blend, exponent, half_life_decay, power_decay


def running(decay, values, batch=1):
    average = values[0]
    for step, value in enumerate(values, start=1):
        kept = decay(batch, step * batch)
        average = kept * average + (1 - kept) * value
    return average


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94, 16.97])
def test_the_exponent_inverts_the_relative_width_of_the_profile(gamma):
    width = (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5
    if gamma == 0:
        assert width == pytest.approx(LONGEST)
    else:
        assert exponent(width) == pytest.approx(gamma, rel=1e-9)


def test_the_exponents_of_edm2_come_out():
    # arXiv:2312.02696, section 3.2: lengths 0.05 and 0.10 are gamma 16.97 and 6.94.
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert exponent(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("length", [0.0, -0.1, LONGEST, 0.5])
def test_a_length_outside_the_range_is_refused(length):
    with pytest.raises(ValueError, match=r"must lie between 0 and 0\.2887"):
        exponent(length)


def test_after_one_half_life_half_of_the_average_is_left():
    steps = 32
    kept = np.prod([half_life_decay(100, 100_000 + 100 * s, 3200, ramp=0) for s in range(steps)])
    assert kept == pytest.approx(0.5)


def test_the_ramp_shortens_the_half_life_while_the_run_is_young():
    assert half_life_decay(512, 0, 500_000, ramp=0.05) == 0
    assert half_life_decay(512, 10_000, 500_000, ramp=0.05) == pytest.approx(0.5 ** (512 / 500))
    late = half_life_decay(512, 100_000_000, 500_000, ramp=0.05)
    assert late == pytest.approx(0.5 ** (512 / 500_000))


def test_a_power_average_of_a_power_of_time_has_its_closed_form():
    # Under (gamma + 1) t^gamma on (0, 1) the average of t^k is (gamma + 1) / (gamma + 1 + k).
    steps, k = 20_000, 3
    values = [(s / steps) ** k for s in range(1, steps + 1)]
    found = running(lambda batch, after: power_decay(batch, after, 0.1), values)
    gamma = exponent(0.1)
    assert found == pytest.approx((gamma + 1) / (gamma + 1 + k), rel=1e-3)


def test_a_power_average_forgets_the_start_at_once():
    assert power_decay(64, 64, 0.05) == 0


def test_a_stored_average_is_rebuilt_from_itself_alone():
    stored = [(1000, 0.05), (1000, 0.1), (2000, 0.05), (2000, 0.1)]
    assert blend(stored, (2000, 0.1)) == pytest.approx([0, 0, 0, 1], abs=1e-6)


def test_blending_is_the_least_squares_solution_of_the_profiles():
    # Profiles on a fine grid of times, fitted by ordinary least squares.
    stored = [(t, length) for t in (25, 50, 75, 100) for length in (0.05, 0.1)]
    t = (np.arange(200_000) + 0.5) / 2000

    def profile(end, length):
        gamma = exponent(length)
        return np.where(t <= end, (gamma + 1) * (t / end) ** gamma / end, 0)

    matrix = np.stack([profile(*entry) for entry in stored], axis=1)
    expected = np.linalg.lstsq(matrix, profile(100, 0.14), rcond=None)[0]
    assert blend(stored, (100, 0.14)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.13, 0.2])
def test_any_length_is_rebuilt_from_two_stored_ones(length):
    steps, every = 4096, 128
    rng = np.random.default_rng(0)
    weights = np.cumsum(rng.normal(size=steps)) / steps**0.5 + np.linspace(0, 2, steps)
    kept = {0.05: weights[0], 0.1: weights[0]}
    stored, values, direct = [], [], weights[0]
    for step, value in enumerate(weights, start=1):
        for name in kept:
            decay = power_decay(1, step, name)
            kept[name] = decay * kept[name] + (1 - decay) * value
        decay = power_decay(1, step, length)
        direct = decay * direct + (1 - decay) * value
        if step % every == 0:
            stored += [(step, name) for name in kept]
            values += list(kept.values())
    found = np.dot(blend(stored, (steps, length)), values)
    assert found == pytest.approx(direct, abs=2e-3 * weights.std())
