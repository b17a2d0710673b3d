"""Another size of image: what interpolated tables preserve."""

import pytest
import torch
import torch.nn.functional as F

from convert.files import V2, dit_network, randomised, v2_network
from diffit.convert.reference import network_of
from diffit.convert.resize import LEARNED, interpolate, resize, resize_bias
from diffit.errors import CheckpointError
from diffit.networks import DiffiTConfig, DiTConfig, LatentDiffiTConfig, build_network
from diffit.networks.mdt import MDTConfig
from diffit.nn.attention import attend, gather_bias
from diffit.nn.embed import sincos_grid


def square(table, side):
    return table.mT.reshape(-1, 2 * side - 1, 2 * side - 1)


def test_shared_displacements_keep_their_bias():
    table = torch.randn(31 * 31, 3)
    before, after = square(table, 16), square(resize_bias(table, (16, 16), (32, 32)), 32)
    # Displacement d of 16 is 2 d of 32; the middle is 15 and 31, corners +-15 and +-30.
    assert torch.equal(after[:, 1::2, 1::2], before)
    assert torch.equal(after[:, 31, 31], before[:, 15, 15])
    assert torch.equal(after[:, 1, 1], before[:, 0, 0])


def test_there_and_back_is_the_original():
    table = torch.randn(31 * 31, 3)
    larger = resize_bias(table, (16, 16), (32, 32))
    assert torch.equal(resize_bias(larger, (32, 32), (16, 16)), table)


@pytest.mark.parametrize("after", [(32, 32), (24, 8), (5, 16), (16, 16)])
def test_a_bias_linear_in_the_displacement_stays_so(after):
    def linear(grid):
        down, across = (
            torch.arange(1 - n, n, dtype=torch.float64) / n for n in grid
        )  # in heights and widths of the picture
        table = 0.3 * down[:, None] - 0.7 * across + 0.1
        return table.reshape(-1, 1)

    found = resize_bias(linear((16, 16)), (16, 16), after)
    torch.testing.assert_close(found, linear(after), atol=1e-12, rtol=0)


def test_interpolation_reproduces_quadratics_inside():
    places = torch.linspace(1, 8, 50, dtype=torch.float64)
    values = torch.arange(10, dtype=torch.float64) ** 2
    torch.testing.assert_close(interpolate(values, places), places**2)


def test_a_grid_of_one_token_has_one_bias():
    assert torch.equal(resize_bias(torch.ones(1, 2), (1, 1), (2, 2)), torch.ones(9, 2))


def test_attention_to_a_smooth_picture_stays():
    """Twice the tokens a side, each weighing a quarter: the same average over the picture."""

    def smooth(side):
        line = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        a, b = torch.meshgrid(line, line, indexing="ij")
        waves = [torch.sin(2 * a + i) + torch.cos(3 * b - i) for i in range(4)]
        return torch.stack(waves, -1).reshape(1, 1, side * side, 4)

    down = torch.linspace(-1, 1, 31, dtype=torch.float64)
    table = (-(down[:, None] ** 2) - down**2).reshape(-1, 1)
    small, large = smooth(16), smooth(32)
    before = attend(small, small, small, gather_bias(table, (16, 16)))
    larger = resize_bias(table, (16, 16), (32, 32))
    after = attend(large, large, large, gather_bias(larger, (32, 32)))
    picture = after[0, 0].T.reshape(1, 4, 32, 32)
    halved = F.avg_pool2d(picture, 2)[0].reshape(4, -1).T
    assert (halved - before[0, 0]).abs().max() < 0.01 * before.abs().max()


def doubled(network, positions):
    config, tensors = resize(network.config, network.state_dict(), 32, positions=positions)
    return network_of(config, tensors)


SHAPE = {"size": 16, "width": 48, "depth": 2, "heads": 4, "classes": 5}
KINDS = {
    # what a network of twice the grid answers to the same picture: relative difference, measured
    "diffit": (LatentDiffiTConfig(**SHAPE), 0.06),
    "v2": (LatentDiffiTConfig(**SHAPE, **V2), 0.15),
    "dit": (DiTConfig(**SHAPE), 0.06),
    "mdt": (MDTConfig(**SHAPE | {"depth": 3, "decoder": 1}), 0.06),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_doubled_network_sees_the_same_smooth_picture(kind):
    config, bound = KINDS[kind]
    network = randomised(config)
    coarse = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(3))

    def answer(network, side):
        """One vector a patch of a smooth picture, brought to a grid of 8 x 8."""
        picture = F.interpolate(coarse, size=(side, side), mode="bicubic")
        time, label = torch.tensor([500.0, 20.0]), torch.tensor([1, 5])
        patches = F.pixel_unshuffle(network(picture, time, label), 2)
        return F.avg_pool2d(patches, patches.shape[-1] // 8)

    with torch.no_grad():
        expected = answer(network, 16)
        gaps = {
            positions: float(
                (answer(doubled(network, positions), 32) - expected).norm() / expected.norm()
            )
            for positions in ("scaled", "plain")
        }
    assert gaps["scaled"] < bound
    if config.name in LEARNED:  # no formula knows the table of another grid
        assert gaps["plain"] == gaps["scaled"]
    else:
        assert gaps["plain"] > 1.5 * gaps["scaled"]


@pytest.mark.parametrize("positions", ["scaled", "plain"])
def test_position_tables_are_the_formula(positions):
    network = dit_network()
    config, tensors = resize(network.config, network.state_dict(), 16, positions=positions)
    assert config.size == 16
    plain = sincos_grid((8, 8), 48)
    if positions == "plain":
        assert torch.equal(tensors["position"], plain)
    else:  # the mean of two neighbours of the finer grid lies where the coarse token was
        first = tensors["position"].view(8, 8, 48)[:2, :2, :12].mean((0, 1))
        assert torch.allclose(first[0], network.position[0, 0], atol=0.05)
        assert not torch.allclose(tensors["position"], plain, atol=0.1)


def test_a_learned_position_table_is_interpolated():
    network = dit_network()
    line = torch.linspace(0, 3, 4)
    table = (line[:, None] + 2 * line).reshape(16, 1).expand(16, 48)
    tensors = network.state_dict() | {"position": table.contiguous()}
    _, larger = resize(network.config, tensors, 16)
    line = (torch.arange(8) + 0.5) / 2 - 0.5
    expected = (line[:, None] + 2 * line).reshape(64, 1).expand(64, 48)
    torch.testing.assert_close(larger["position"], expected, atol=1e-5, rtol=0)


def test_what_cannot_be_resized_is_refused():
    network = v2_network()
    config, tensors = resize(network.config, network.state_dict(), 16)
    with pytest.raises(CheckpointError, match="was resized before; start from the original"):
        resize(config, tensors, 32)
    with pytest.raises(CheckpointError, match="size 7 x 7 is no multiple of patch 2"):
        resize(network.config, network.state_dict(), 7)
    pixels = build_network(DiffiTConfig(widths=(16,), blocks=(1,), size=8))
    with pytest.raises(CheckpointError, match="of kind 'diffit' cannot be resized"):
        resize(pixels.config, pixels.state_dict(), 16)
