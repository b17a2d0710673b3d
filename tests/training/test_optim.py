"""Learning rates against closed forms; groups; the state as tensors; the loss scale."""

import math

import pytest
import torch
from torch import nn

from diffit.nn.time_norm import TimeVector
from diffit.training.optim import (
    LossScale,
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_rate,
)


def adam(network, *, name="adamw", **options):
    options = {"weight_decay": 0.0, **options}
    return build_optimizer(network, name=name, rate=0.1, betas=(0.9, 0.99), epsilon=1e-8, **options)


def test_the_warm_up_is_linear_and_then_the_rate_stays():
    rates = [learning_rate(n, peak=2.0, warmup=100) for n in (1, 50, 100, 5000)]
    assert rates == pytest.approx([0.02, 1.0, 2.0, 2.0])


def test_cosine_and_linear_fall_from_start_to_end():
    for law, middle in (("cosine", 0.5 * (1 + math.cos(math.pi / 4))), ("linear", 0.75)):
        rates = [
            learning_rate(n, peak=1.0, law=law, start=100, end=500) for n in (100, 200, 500, 900)
        ]
        assert rates == pytest.approx([1, middle, 0, 0], abs=1e-12)


def test_the_floor_is_what_is_left_at_the_end():
    assert learning_rate(500, peak=3.0, law="cosine", end=500, floor=0.1) == pytest.approx(0.3)


def test_inverse_square_root_halves_when_images_quadruple():
    def rate(n):
        return learning_rate(n, peak=1.0, law="inverse-sqrt", start=1000)

    assert rate(999) == rate(1000) == 1
    assert rate(4000) == pytest.approx(0.5)
    assert rate(16_000) == pytest.approx(0.25)


def test_a_step_drops_to_the_floor_at_once():
    def rate(n):
        return learning_rate(n, peak=2.0, warmup=100, law="step", start=1000, floor=0.2)

    assert [rate(n) for n in (50, 100, 1000)] == pytest.approx([1, 2, 2])
    assert [rate(n) for n in (1001, 10**9)] == pytest.approx([0.4, 0.4])


def test_weight_decay_of_all_spares_what_a_module_names():
    network = nn.Sequential(nn.Linear(4, 4), TimeVector(4, 1.0))
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    adam(network, weight_decay=0.5, decayed="all").step()
    kept = {n for n, p in network.named_parameters() if bool((p == 1).all())}
    assert kept == {"1.slope", "1.offset"}


def test_weight_decay_spares_norms_biases_and_tables():
    network = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    network.table = nn.Parameter(torch.ones(5, 5))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = adam(network, weight_decay=0.5)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"1.weight"}
    assert torch.allclose(network[1].weight, before["1.weight"] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_first_step_of_adam_moves_by_the_learning_rate(name):
    network = nn.Linear(3, 1, bias=False)
    before = network.weight.detach().clone()
    optimizer = adam(network, name=name)
    set_rate(optimizer, 0.01)
    network.weight.grad = torch.tensor([[3.0, -2.0, 0.5]])
    optimizer.step()
    moved = before - network.weight.detach()
    assert torch.allclose(moved, 0.01 * torch.tensor([[1.0, -1.0, 1.0]]), atol=1e-6)


def test_the_state_survives_as_tensors_bit_for_bit():
    torch.manual_seed(0)
    networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [adam(network, weight_decay=0.1) for network in networks]

    def step(i):
        for k, p in enumerate(networks[i].parameters()):
            p.grad = torch.full_like(p, 0.3 + k)
        optimizers[i].step()

    step(0)
    stored = {k: t.clone() for k, t in optimizer_tensors(optimizers[0], networks[0]).items()}
    assert set(stored) == {
        f"{p}/{q}" for p in ("weight", "bias") for q in ("step", "exp_avg", "exp_avg_sq")
    }
    networks[1].load_state_dict(networks[0].state_dict())
    load_optimizer_tensors(optimizers[1], networks[1], stored)
    step(0)
    step(1)
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_scale_halves_on_overflow_and_doubles_with_patience():
    scale = LossScale(start=1024, patience=3)
    scale.update(finite=False)
    assert scale.factor == 512
    for _ in range(3):
        scale.update(finite=True)
    assert scale.factor == 1024
    assert scale.good == 0
