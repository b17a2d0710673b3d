"""Gradients of a batch: the same in any parts, clipped, and their culprits found."""

import pytest
import torch
from torch import nn

from diffit.data.loader import Batch
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import EDMConfig, build_formulation
from diffit.diffusion.loss import min_snr
from diffit.model import Model, build_model
from diffit.training.inputs import draw_inputs
from diffit.training.optim import LossScale
from diffit.training.step import Objective, arithmetic
from tiny import tiny_run


@pytest.fixture
def model():
    return build_model(tiny_run().model, seed=1)


def inputs_for(model, count=12, first=0):
    image = torch.randint(0, 256, (count, *model.shape), dtype=torch.uint8)
    number = torch.arange(first, first + count)
    return draw_inputs(Batch(image, number % 10, number), model, seed=0, label_dropout=0.5)


def used(model):
    return [p for p in model.network.parameters() if p.grad is not None]


def gradient(objective, inputs, **options):
    found = objective.gradients(inputs, **options)
    return torch.cat([p.grad.flatten() for p in used(objective.model)]), found


@pytest.mark.parametrize("micro_batch", [1, 5, 12, 100])
def test_any_parts_give_the_gradient_of_the_mean(model, micro_batch):
    inputs, objective = inputs_for(model), Objective(model)
    objective.losses(inputs).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in used(model)])
    actual, found = gradient(objective, inputs, micro_batch=micro_batch)
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-6 * expected.abs().max())
    assert found.norm == pytest.approx(expected.norm().item(), rel=1e-5)
    assert found.losses.tolist() == pytest.approx(objective.losses(inputs).tolist(), rel=1e-5)
    assert found.finite


def test_each_call_starts_from_zero(model):
    inputs, objective = inputs_for(model), Objective(model)
    first, _ = gradient(objective, inputs)
    again, _ = gradient(objective, inputs)
    assert torch.equal(first, again)


def test_the_loss_scale_cancels(model):
    inputs = inputs_for(model)
    plain, _ = gradient(Objective(model), inputs)
    scaled, found = gradient(Objective(model, scale=LossScale(start=1024.0)), inputs)
    assert torch.equal(plain, scaled)
    assert found.norm == pytest.approx(plain.norm().item(), rel=1e-6)


def test_the_weight_multiplies_each_loss(model):
    inputs = inputs_for(model)
    weight = min_snr(model.formulation)
    expected = Objective(model).losses(inputs) * weight(inputs.sigma).float()
    assert torch.allclose(Objective(model, weight).losses(inputs), expected)


def test_clipping_leaves_the_direction_and_limits_the_norm(model):
    inputs, objective = inputs_for(model), Objective(model)
    before, found = gradient(objective, inputs)
    before = before.clone()
    objective.clip(found.norm, 2 * found.norm)
    objective.clip(found.norm, None)
    objective.clip(found.norm, found.norm / 4)
    after = torch.cat([p.grad.flatten() for p in used(model)])
    assert torch.allclose(after, before / 4)


def test_images_whose_loss_is_not_finite_are_found(model):
    inputs = inputs_for(model)
    inputs.clean[3, 0, 2, 2] = float("nan")
    inputs.clean[7, 0, 0, 0] = float("inf")
    objective = Objective(model)
    assert not objective.gradients(inputs, micro_batch=4).finite
    assert list(objective.culprits(inputs)) == [3, 7]
    assert all(p.grad is None for p in model.network.parameters())


class Root(nn.Module):
    """A network whose gradient is infinite, though its value is not, where the image is 0."""

    config = tiny_run(network={"classes": 0}).model.network

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, time, label=None, image=None, *, augment=None, keys=None):
        return (self.scale * x).abs().sqrt()


def test_images_whose_gradient_alone_is_not_finite_are_found():
    config = tiny_run(network={"classes": 0}).model
    model = Model(Denoiser(Root(), build_formulation(EDMConfig())), None, config)
    inputs = inputs_for(build_model(config), count=4)
    inputs.clean[2], inputs.noise[2] = 0, 0
    found = Objective(model).gradients(inputs)
    assert torch.isfinite(found.losses).all()
    assert not found.finite
    assert list(Objective(model).culprits(inputs)) == [2]


def test_the_numerical_settings_are_those_of_before_afterwards():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with arithmetic(torch.device("cpu"), tf32=True, threads=1):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert not torch.backends.cuda.matmul.allow_tf32
