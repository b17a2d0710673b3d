"""A hub-style folder of some thousand weights."""

import torch

from diffit.config import parse
from diffit.hub import Card, write_folder
from diffit.model import ModelConfig, build_model
from diffit.sampling import SamplingConfig
from tiny import NETWORK

CONFIG = parse(
    ModelConfig,
    {"network": NETWORK, "class_names": [f"kind {i}" for i in range(10)]},
    source="test",
)
SAMPLING = SamplingConfig(steps=7, guidance=1.5)


def write(folder, *, config=CONFIG, card=None, **options):
    network = build_model(config, seed=1).network
    write_folder(
        folder, config=config, sampling=SAMPLING, tensors=network.state_dict(),
        card=card or Card(), **options,
    )  # fmt: skip
    return network


def same(network, other):
    mine, theirs = network.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
