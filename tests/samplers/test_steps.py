"""One-step formulas: the posterior, renoising, and level lists that are refused."""

import pytest
import torch

from diffit.samplers.steps import (
    ancestral_step,
    ddim_step,
    euler_step,
    posterior_mean,
    raise_step,
    walk,
)

SIGMA, LOWER = torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)


def test_ancestral_step_draws_from_bayes_rule():
    """x at l, given x at s and the clean image: precisions add."""
    x, clean = torch.tensor([1.7, -0.2]).double(), torch.tensor([0.1, 0.9]).double()
    added = SIGMA**2 - LOWER**2
    precision = 1 / LOWER**2 + 1 / added
    mean = (clean / LOWER**2 + x / added) / precision
    torch.testing.assert_close(posterior_mean(x, clean, SIGMA, LOWER), mean)
    zero, one = torch.zeros(2).double(), torch.ones(2).double()
    torch.testing.assert_close(ancestral_step(x, clean, SIGMA, LOWER, zero), mean)
    spread = ancestral_step(x, clean, SIGMA, LOWER, one) - mean
    torch.testing.assert_close(spread**2, (1 / precision).expand(2))


def test_every_eta_keeps_the_noise_level():
    """Of x = clean + s n and a fresh draw z, the step makes clean + l (something of variance 1)."""
    clean, zero = torch.zeros(1).double(), torch.zeros(1).double()
    for eta in (0.0, 0.3, 1.0):
        kept = ddim_step(clean + SIGMA, clean, SIGMA, LOWER, zero, eta=eta)
        fresh = ddim_step(clean, clean, SIGMA, LOWER, zero + 1, eta=eta)
        assert (kept**2 + fresh**2).item() == pytest.approx(LOWER.item() ** 2)


def test_steps_to_zero_give_the_clean_image():
    x, clean, noise = torch.randn(3, 4).double()
    zero = torch.tensor(0.0)
    assert torch.equal(euler_step(x, clean, SIGMA, zero), clean)
    assert torch.equal(ancestral_step(x, clean, SIGMA, zero, noise), clean)


def test_raising_adds_the_missing_variance():
    moved = raise_step(torch.zeros(1).double(), LOWER, SIGMA, torch.ones(1).double())
    assert moved.item() ** 2 == pytest.approx(2.0**2 - 0.5**2)


def test_levels_may_be_plain_numbers():
    x, clean = torch.randn(2, 4).double()
    assert torch.equal(euler_step(x, clean, 2.0, 0.5), euler_step(x, clean, SIGMA, LOWER))


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0], r"shape \(1,\); it must be \(S [+] 1,\)"),
        ([[2.0, 1.0]], r"shape \(1, 2\)"),
        ([2.0, 2.0, 1.0], "must decrease from each level to the next"),
        ([1.0, 2.0], "must decrease"),
        ([1.0, -1.0], "finite and not negative"),
        ([float("inf"), 1.0], "finite and not negative"),
        ([1.0, float("nan")], "finite and not negative"),
    ],
)
def test_lists_that_do_not_decrease_are_refused(sigmas, message):
    with pytest.raises(ValueError, match=message):
        walk(torch.tensor(sigmas))
