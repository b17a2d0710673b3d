"""Gauges: the attention logit by hand, shares of time, distance of an average, the ceiling."""

import math
import time

import pytest
import torch

from diffit.networks.count import count_macs, training_flops
from diffit.nn.attention import attend, largest_logits
from diffit.training import gauges
from diffit.training.batches import open_loader
from diffit.training.gauges import Gauges, at_levels, matrix_ceiling, used_memory
from diffit.training.inputs import draw_inputs
from diffit.training.journal import CLOCKS, read_metrics
from diffit.training.loop import train
from diffit.training.prepare import build_objective, open_training_data
from diffit.training.state import fresh_state
from tiny import tiny_run

CPU = torch.device("cpu")


def inputs_of(config, state):
    with open_loader(config, open_training_data(config), start=0) as loader:
        return draw_inputs(next(loader), state.model, seed=0)


@pytest.mark.parametrize("bias", [None, (3, 7, 7), (2, 3, 7, 7)])
def test_the_largest_logit_is_that_of_the_explicit_form(bias):
    q, k, v = torch.randn(3, 2, 3, 7, 4).unbind(0)
    added = None if bias is None else torch.randn(bias)
    with largest_logits() as found:
        attend(q, k, v, added)
    scores = q @ k.mT / 2 + (0 if added is None else added)
    assert len(found) == 1
    assert found[0].item() == pytest.approx(scores.max().item(), rel=1e-6)


def test_nothing_is_collected_outside():
    q = torch.randn(1, 1, 2, 4)
    with largest_logits() as found:
        pass
    attend(q, q, q)
    assert found == []


def test_training_costs_three_forward_passes_of_two_operations_a_multiplication():
    network = tiny_run().model.network
    assert training_flops(network) == 6 * count_macs(network)


def test_attention_is_looked_at_for_one_image_at_four_levels():
    config = tiny_run()
    state = fresh_state(config, CPU)
    batch = inputs_of(config, state)
    seen = at_levels(batch, state.model)
    assert seen.clean.shape[0] == seen.sigma.shape[0] == 4
    assert torch.equal(seen.clean[0], seen.clean[3])
    assert torch.equal(seen.clean[0], batch.clean[0])
    assert seen.sigma[0] < seen.sigma[1] < seen.sigma[2] < seen.sigma[3]


def test_figures_say_how_far_the_average_is_and_how_long_data_were_awaited(monkeypatch):
    config = tiny_run(ema={"constant": [0.5]})
    state = fresh_state(config, CPU)
    objective, batch = build_objective(state, config), inputs_of(config, state)
    gauge = Gauges(config, state)

    def slow():
        time.sleep(0.05)
        yield batch

    gauge.next(slow())
    with torch.no_grad():
        for p in state.model.network.parameters():
            p.mul_(2)
    state.images, state.seconds = 16, 0.1
    figures = gauge.read(objective, batch)
    # Buffers are constants, and belong to the average too: they keep the share below 1/2.
    assert 0.4 < figures["ema_distance"] <= 0.5
    assert 0.5 <= figures["data_wait"] <= 1
    assert figures["memory"] > 50 << 20
    assert math.isfinite(figures["attention_logit"])
    ceiling = matrix_ceiling("cpu", "fp32", False, torch.get_num_threads())
    expected = 160 * training_flops(config.model.network) / ceiling
    assert figures["utilisation"] == pytest.approx(expected, abs=1e-4)


def test_the_ceiling_is_measured_once_and_draws_nothing_from_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    gauges.matrix_ceiling.cache_clear()
    first = matrix_ceiling("cpu", "fp32", False, 1)
    assert torch.equal(torch.rand(1), expected)
    assert first == matrix_ceiling("cpu", "fp32", False, 1) > 1e8


def test_memory_follows_what_is_allocated():
    before = used_memory(CPU)
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert used_memory(CPU) - before > 0.9 * len(held)


def test_a_line_has_them(tmp_path):
    train(tiny_run(images=32), tmp_path / "run", quiet=True)
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert set(CLOCKS) <= line.keys()
    assert line["attention_logit"] > 0
    assert 0 < line["ema_distance"] < 1
