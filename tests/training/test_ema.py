"""Averages of weights against their closed forms; their settings."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from diffit.averages import exponent
from diffit.training.ema import AverageConfig, Averages


def follow(config, values, batch=8):
    """Averages of a network whose one weight takes these values, step by step."""
    network = nn.Linear(1, 1, bias=False)
    network.register_buffer("count", torch.tensor(0))
    with torch.no_grad():
        network.weight.fill_(values[0])
    averages = Averages(network, config)
    for step, value in enumerate(values[1:], start=1):
        with torch.no_grad():
            network.weight.fill_(value)
            network.count.fill_(step)
        averages.update(batch=batch, after=step * batch)
    assert all(kept["count"] == len(values) - 1 for kept in averages.tensors.values())
    return {name: kept["weight"].item() for name, kept in averages.tensors.items()}


def test_a_constant_decay_is_a_geometric_sum():
    found = follow(AverageConfig(constant=(0.9,)), [0.0] + [1.0] * 20)
    assert found["ema-0.9"] == pytest.approx(1 - 0.9**20, rel=1e-5)


def test_a_half_life_leaves_half_of_the_start():
    config = AverageConfig(half_life=(80,), ramp=0)
    found = follow(config, [1.0] + [0.0] * 10, batch=8)
    assert found["ema-80"] == pytest.approx(0.5, rel=1e-5)


def test_the_ramp_replaces_the_start_in_the_first_step():
    assert follow(AverageConfig(half_life=(80,), ramp=0.05), [5.0, 1.0])["ema-80"] == 1.0


def test_power_averages_of_a_line_have_their_closed_form():
    # The average of t under (gamma + 1) t^gamma on (0, 1) is (gamma + 1) / (gamma + 2).
    values = [k / 4000 for k in range(4001)]
    found = follow(AverageConfig(power=(0.05, 0.1)), values)
    for length in (0.05, 0.1):
        gamma = exponent(length)
        expected = (gamma + 1) / (gamma + 2)
        assert found[f"ema-power-{length}"] == pytest.approx(expected, abs=5e-4)


def test_several_are_kept_under_their_names_and_the_first_is_the_default():
    config = AverageConfig(constant=(0.9999,), half_life=(500_000,), power=(0.05,))
    assert config.names == ("ema-0.9999", "ema-500000", "ema-power-0.05")
    assert config.chosen == "ema-0.9999"
    assert AverageConfig().chosen == "model"
    assert AverageConfig(constant=(0.9,), default="model").chosen == "model"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"constant": (1.0,)}, "train.ema.constant 1.0 must lie in"),
        ({"half_life": (0,)}, "train.ema.half_life 0 must be more than 0"),
        ({"power": (0.3,)}, "train.ema.power 0.3 must lie between 0 and 0.289"),
        ({"ramp": -1}, "must not be negative"),
        ({"constant": (0.9,), "default": "ema"}, "'ema' is not kept; there are: model, ema-0.9"),
    ],
)
def test_averages_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValidationError, match=sentence):
        AverageConfig(**settings)


def test_an_average_is_restored_bit_for_bit():
    network = nn.Linear(2, 2)
    averages = Averages(network, AverageConfig(constant=(0.9,)))
    stored = {key: torch.randn_like(tensor) for key, tensor in network.state_dict().items()}
    averages.load("ema-0.9", stored)
    for key, tensor in averages.tensors["ema-0.9"].items():
        assert torch.equal(tensor, stored[key])
        assert tensor.data_ptr() != stored[key].data_ptr()
