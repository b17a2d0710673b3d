"""Every solver of the probability flow converges on a mixture in the order it claims."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from diffit.diffusion.formulation import EDMConfig, build_formulation
from diffit.diffusion.schedule import levels
from diffit.samplers import SAMPLERS
from diffit.samplers.exponential import moments, weights
from diffit.samplers.multistep import dpmpp_multistep, dpmpp_multistep_sde
from diffit.samplers.singlestep import dpmpp_singlestep, groups
from diffit.samplers.unipc import unipc
from oracle import Gaussian, three_bumps

ROW = build_formulation(EDMConfig())
HIGH, LOW = 80.0, 0.05
ORDERS = {
    "euler": (SAMPLERS["euler"].run, 1),
    "ddim": (SAMPLERS["ddim"].run, 1),
    "dpmpp-1": (SAMPLERS["dpmpp-1"].run, 1),
    "heun": (SAMPLERS["heun"].run, 2),
    "dpmpp-2m": (SAMPLERS["dpmpp-2m"].run, 2),
    "dpmpp-2s": (SAMPLERS["dpmpp-2s"].run, 2),
    "dpmpp-3m": (SAMPLERS["dpmpp-3m"].run, 3),
    "dpmpp-3s": (SAMPLERS["dpmpp-3s"].run, 3),
    # The corrector raises the predictor's order by one.
    "unipc-1-bh1": (partial(unipc, order=1, variant="bh1"), 2),
    "unipc-1-bh2": (partial(unipc, order=1, variant="bh2"), 2),
    "unipc-2-bh1": (partial(unipc, order=2, variant="bh1"), 3),
    "unipc-2-bh2": (partial(unipc, order=2, variant="bh2"), 3),
    "unipc-3": (unipc, 4),
}


@pytest.fixture(scope="module")
def path():
    """A mixture, states at HIGH, and where the flow takes them at LOW and nearly at 0."""
    data = three_bumps()
    x = torch.randn(8, 1, 1, 2, dtype=torch.float64, generator=torch.manual_seed(0)) * HIGH
    low = data.solution(x, HIGH, LOW)
    return data, x, low, data.solution(low, LOW, 0.002)


@pytest.mark.parametrize("name", ORDERS)
def test_error_falls_with_the_claimed_order(name, path):
    (data, x, exact, _), (sampler, order) = path, ORDERS[name]

    def error(steps):
        sigmas = levels("karras", steps + 1, ROW, low=LOW, high=HIGH)[:-1]
        return (sampler(data, x, sigmas, noise=None) - exact).abs().mean().item()

    # 80 and 158 steps: neither is a multiple of 3, where third-order singlestep ends on a step of
    # first order.
    rate = math.log(error(80) / error(158)) / math.log(158 / 80)
    assert order - 0.2 < rate < order + 0.35


@pytest.mark.parametrize("name", ORDERS)
def test_a_final_zero_gives_the_clean_image(name, path):
    (data, x, _, exact), (sampler, order) = path, ORDERS[name]
    end = sampler(data, x, levels("karras", 60, ROW), noise=None)
    # From 0.002 on the flow moves by far less than the tolerance.
    tolerance = {1: 0.05, 2: 0.01, 3: 0.004, 4: 0.004}[order]
    torch.testing.assert_close(end, exact, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [n for n in ORDERS if n in SAMPLERS])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9, 10, 11])
def test_evaluations_are_as_stated(name, steps):
    calls = []

    def counting(x, sigma):
        calls.append(sigma)
        return Gaussian()(x, sigma)

    sigmas = levels("karras", steps, ROW)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64) * 80
    end = SAMPLERS[name].run(counting, x, sigmas, noise=None)
    assert len(calls) == SAMPLERS[name].evaluations(steps)
    assert end.isfinite().all()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_noisy_multistep_has_the_moments_of_the_data(order):
    data, generator, count = Gaussian(), torch.manual_seed(0), 20_000
    sigmas = levels("karras", 120 if order == 1 else 60, ROW)
    unit = torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=generator)

    def noise():
        return torch.randn(unit.shape, dtype=torch.float64, generator=generator)

    end = dpmpp_multistep_sde(data, unit * sigmas[0], sigmas, noise=noise, order=order)
    assert end.mean().item() == pytest.approx(data.mean, abs=4 * data.std / count**0.5)
    bias = 0.03 if order == 1 else 0.005
    assert end.std().item() == pytest.approx(data.std, rel=bias + 4 / (2 * count) ** 0.5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_noisy_multistep_converges_in_distribution(order):
    """On Gaussian data a run is linear in its draws, so its variance follows without any draw."""

    def variance(steps):
        sigmas = levels("log-uniform", steps + 1, ROW, low=LOW, high=HIGH)[:-1]
        # Image 0 carries the start through, image i the i-th draw: unit impulses.
        x = torch.zeros(steps + 1, 1, 1, 1, dtype=torch.float64)
        x[0] = math.hypot(0.7, HIGH)
        draws = torch.eye(steps + 1, dtype=torch.float64)[1:, :, None, None, None]
        noise = iter(draws).__next__
        end = dpmpp_multistep_sde(Gaussian(mean=0.0), x, sigmas, noise=noise, order=order)
        return end.square().sum().item()

    exact = 0.7**2 + LOW**2
    errors = [abs(variance(steps) - exact) for steps in (80, 160)]
    rate = math.log2(errors[0] / errors[1])
    # Fresh noise is not smooth along the way: the third order only makes the error smaller.
    assert rate == pytest.approx(min(order, 2), abs=0.1)
    if order == 3:
        assert errors[0] < 6e-4  # 1.3e-3 in second order


def test_noisy_first_order_is_ancestral():
    sigmas = levels("karras", 12, ROW)
    x = torch.randn(4, 1, 1, 2, dtype=torch.float64) * 80
    draws = torch.randn(11, *x.shape, dtype=torch.float64)
    torch.testing.assert_close(
        dpmpp_multistep_sde(three_bumps(), x, sigmas, noise=iter(draws).__next__, order=1),
        SAMPLERS["ancestral"].run(three_bumps(), x, sigmas, noise=iter(draws).__next__),
    )


def test_first_order_is_euler():
    sigmas = levels("karras", 12, ROW)
    x = torch.randn(4, 1, 1, 2, dtype=torch.float64) * 80
    expected = SAMPLERS["euler"].run(three_bumps(), x, sigmas)
    torch.testing.assert_close(dpmpp_multistep(three_bumps(), x, sigmas, order=1), expected)


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.3, 0.499, 0.501, 2.0, 30.0])
def test_moments_are_their_integrals(h):
    # Gauss-Legendre in v = 1 - u, stretched so that the kernel's decay is resolved.
    end = min(1.0, 40 / h)
    node, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(80))
    v = (node + 1) / 2 * end
    kernel = h * (-h * v).exp() * weight * end / 2
    for k, moment in enumerate(moments(h, 4)):
        assert moment == pytest.approx((kernel * (1 - v) ** k).sum().item(), rel=1e-9)


def test_weights_integrate_polynomials_exactly():
    nodes, h = [0.0, -0.7, -1.9, 1.0], 0.8
    found = torch.tensor(weights(nodes, h), dtype=torch.float64)
    for k, moment in enumerate(moments(h, 4)):
        values = torch.tensor(nodes, dtype=torch.float64) ** k
        assert (found * values).sum().item() == pytest.approx(moment, rel=1e-9)


def test_groups_are_the_published_ones():
    assert groups(7, 3, to_zero=False) == [3, 3, 1]
    assert groups(8, 3, to_zero=False) == [3, 3, 2]
    assert groups(9, 3, to_zero=False) == [3, 3, 2, 1]
    assert groups(12, 3, to_zero=False) == [3, 3, 3, 2, 1]
    assert groups(5, 2, to_zero=False) == [2, 2, 1]
    assert groups(10, 3, to_zero=True) == [3, 3, 3, 1]
    assert groups(9, 3, to_zero=True) == [3, 3, 2, 1]
    for steps in range(1, 20):
        for order in (2, 3):
            for to_zero in (False, True):
                assert sum(groups(steps, order, to_zero=to_zero)) == steps


@pytest.mark.parametrize(
    ("sampler", "order", "message"),
    [
        (dpmpp_multistep, 4, "order is 4; multistep DPM-Solver[+][+] has orders 1, 2 and 3"),
        (dpmpp_singlestep, 1, "order is 1; singlestep DPM-Solver[+][+] has orders 2 and 3"),
        (unipc, 0, "order is 0; UniPC has orders 1, 2 and 3"),
    ],
)
def test_orders_that_do_not_exist_are_refused(sampler, order, message):
    with pytest.raises(ValueError, match=message):
        sampler(Gaussian(), torch.zeros(1, 1, 1, 1), torch.tensor([2.0, 1.0]), order=order)
