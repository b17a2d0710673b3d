"""The loss that networks are compared by."""

import pytest
import torch
from torch import nn

from diffit.codecs import Pixels
from diffit.data import open_dataset
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import FlowConfig, build_formulation
from diffit.model import Model, ModelConfig, build_model
from diffit.networks.dit import DiTConfig
from diffit.training.held_out import LEVELS, held_out_loss, note_held_out, read_held_out

CONFIG = ModelConfig(
    network=DiTConfig(size=8, channels=1, classes=10, width=8, depth=1, heads=1),
    formulation=FlowConfig(),
)
SET = open_dataset("builtin:digits-test")


class Nothing(nn.Module):
    """Predicts 0, or the input divided by its noise level."""

    def __init__(self):
        super().__init__()
        self.config, self.weight = CONFIG.network, nn.Parameter(torch.zeros(()))

    def forward(self, x, time, label=None, image=None, **_):
        return x * self.weight


def test_a_network_that_predicts_nothing_has_the_mean_square_of_the_target():
    model = build_model(CONFIG)
    denoiser = Denoiser(Nothing(), build_formulation(CONFIG.formulation))
    losses = held_out_loss(Model(denoiser, model.codec, CONFIG), SET)
    images = torch.stack([torch.from_numpy(SET[i].image) for i in range(len(SET))])
    clean = model.codec.encode(images)
    # The target of flow matching is noise - clean, at every level the same.
    assert losses == pytest.approx([losses[0]] * LEVELS)
    assert losses[0] == pytest.approx(1 + clean.square().mean().item(), rel=0.02)


def test_an_untrained_network_is_measured_twice_alike():
    model = build_model(CONFIG)
    assert held_out_loss(model, SET) == held_out_loss(model, SET)
    assert isinstance(model.codec, Pixels)


def test_lines_beyond_a_resumed_point_are_dropped(tmp_path):
    for images, loss in ((10, 3.0), (20, 2.0), (30, 1.0), (20, 2.5)):
        note_held_out(tmp_path, images, [loss] * LEVELS)
    assert [(line["images"], line["loss"]) for line in read_held_out(tmp_path)] == [
        (10, 3.0),
        (20, 2.5),
    ]
    assert read_held_out(tmp_path / "nothing") == []
