"""Networks brought to one size."""

import pytest
import torch

from diffit.errors import UsageError
from diffit.networks import NETWORKS, build_network
from diffit.networks.count import count_parameters
from diffit.training.contenders import CONTENDERS, contender


def parameters(config):
    with torch.device("meta"):
        return count_parameters(build_network(config))


def test_every_network_takes_part():
    assert set(CONTENDERS) == set(NETWORKS)


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize(
    ("wanted", "shape", "classes"),
    [(60_000, (1, 8, 8), 10), (500_000, (1, 8, 8), 10), (8_000_000, (3, 32, 32), 0)],
)
def test_all_come_within_three_percent(name, wanted, shape, classes):
    config = contender(name, wanted, shape=shape, classes=classes, patch=2)
    assert config.name == name
    assert config.shape == shape
    assert config.classes == classes
    assert parameters(config) == pytest.approx(wanted, rel=0.03)


def test_too_few_parameters_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"DiffiT cannot have 2,000 .* nearest is [\d,]+; choose"):
        contender("diffit", 2_000, shape=(1, 8, 8), classes=10, patch=2)
