"""Every prediction says the same as every other."""

import itertools

import pytest
import torch

from diffit.diffusion.convert import State, convert
from diffit.diffusion.formulation import (
    EDMConfig,
    FlowConfig,
    SubVPConfig,
    VEConfig,
    VPConfig,
    build_formulation,
)
from oracle import Gaussian

KINDS = ("clean", "noise", "v", "score", "velocity")
ROWS = [
    build_formulation(config())
    for config in (VPConfig, SubVPConfig, VEConfig, EDMConfig, FlowConfig)
]


def drawn(a: float, s: float):
    clean, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.manual_seed(0)).double()
    a, s = (torch.tensor(value, dtype=torch.float64) for value in (a, s))
    known = {
        "clean": clean,
        "noise": noise,
        "v": a * noise - s * clean,
        "score": -noise / s,
        "velocity": noise - clean,
    }
    return State(a * clean + s * noise, a, s), known


@pytest.mark.parametrize(("given", "wanted"), list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize(("a", "s"), [(0.6, 0.8), (1.0, 20.0), (0.7, 0.3), (0.99, 0.01)])
def test_each_kind_gives_the_definition_of_each_other_and_the_way_back(given, wanted, a, s):
    state, known = drawn(a, s)
    there = convert(known[given], state, given=given, wanted=wanted)
    torch.testing.assert_close(there, known[wanted], rtol=1e-9, atol=1e-9)
    back = convert(there, state, given=wanted, wanted=given)
    torch.testing.assert_close(back, known[given], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_one_denoiser_serves_the_state_of_every_formulation(row):
    data, sigma = Gaussian(), torch.tensor([0.1, 1.0, 8.0], dtype=torch.float64)
    x = torch.randn(3, 1, 4, 4, generator=torch.manual_seed(0)).double()
    ours = State(x, torch.ones_like(sigma), sigma)
    theirs = ours.rescaled(row.signal(sigma))
    score = convert(data(x, sigma), theirs, given="clean", wanted="score")
    # The marginal of x_t is N(a mean, a^2 std^2 + s^2).
    a, s = (part.reshape(-1, 1, 1, 1) for part in (theirs.a, theirs.s))
    expected = -(theirs.x - a * data.mean) / (a**2 * data.std**2 + s**2)
    torch.testing.assert_close(score, expected)


def test_an_unknown_prediction_is_refused():
    state, known = drawn(0.6, 0.8)
    with pytest.raises(ValueError, match="no prediction 'eps'; choose from clean, noise"):
        convert(known["noise"], state, given="eps", wanted="clean")
