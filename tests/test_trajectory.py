"""The recorded denoising path: exact estimates, attention that is a distribution, a picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffit.diffusion.formulation import EDMConfig
from diffit.generation import generate
from diffit.model import Model, ModelConfig, build_model
from diffit.networks import DiffiTConfig
from diffit.sampling import SamplingConfig
from diffit.trajectory import attention_layers, centre, picture, record, spread


def model(*, blocks: tuple[int, ...] = (1, 1), channels: int = 1) -> Model:
    network = DiffiTConfig(
        size=8, channels=channels, classes=3, widths=(16,) * len(blocks), blocks=blocks, heads=2,
        window=4, time_width=32, time_features=16, groups=4,
    )  # fmt: skip
    return build_model(ModelConfig(network=network, formulation=EDMConfig()))


STEPS = SamplingConfig(steps=5, guidance=1.5)


def test_the_path_ends_in_the_image_that_generate_draws() -> None:
    path = record(model(), [4, 5], labels=[0, 1], settings=STEPS)
    assert path.sigmas[0] == 80.0
    assert list(path.sigmas) == sorted(path.sigmas, reverse=True)
    assert path.estimates.shape == (5, 2, 1, 8, 8)
    assert path.estimates.dtype == torch.uint8
    # Attention is made explicit for the record, and rounds differently.
    drawn = generate(model(), [4, 5], labels=[0, 1], settings=STEPS)
    assert (path.images.int() - drawn.int()).abs().max() <= 1
    # At the last level before 0 the estimate is what is drawn.
    assert torch.equal(path.estimates[-1], path.images)


def test_attention_of_the_centre_token_is_a_distribution_over_its_window() -> None:
    path = record(model(), [0, 1], labels=0, settings=STEPS)
    for maps in path.attention.values():
        assert maps.shape[:2] == (5, 2)
        assert (maps >= 0).all()
        torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(5, 2))
    finest = next(maps for maps in path.attention.values() if maps.shape[-2:] == (8, 8))
    inside = finest[..., 4:, 4:].sum((-2, -1))  # the window of token (4, 4)
    torch.testing.assert_close(inside, torch.ones(5, 2))


def test_recording_leaves_the_network_as_it_was() -> None:
    network = model()
    before = generate(network, [0], labels=0, settings=STEPS)
    record(network, [0], labels=0, settings=STEPS)
    assert torch.equal(generate(network, [0], labels=0, settings=STEPS), before)


def test_centre_picks_the_middle_row_of_the_map() -> None:
    maps = torch.zeros(1, 2, 16, 16)
    maps[0, :, 2 * 4 + 2, 7] = torch.tensor([1.0, 0.5])
    middle = centre(maps, (8, 8))
    assert middle.shape == (1, 4, 4)
    assert middle[0, 1, 3] == 0.75
    assert middle.sum() == 0.75


def test_centre_knows_grids_that_are_no_squares() -> None:
    assert centre(torch.zeros(2, 1, 18, 18), (12, 24)).shape == (2, 3, 6)
    with pytest.raises(ValueError, match="17 tokens make no grid"):
        centre(torch.zeros(1, 1, 17, 17), (8, 8))


def test_spread_keeps_both_ends() -> None:
    assert spread(list("abcdefghij"), 4) == ["a", "d", "g", "j"]
    assert spread(["a", "b"], 4) == ["a", "b"]


def test_named_layers_alone_are_recorded() -> None:
    network = model(blocks=(2, 2))
    names = attention_layers(network.network)
    assert len(names) > 4
    path = record(network, [0], labels=0, settings=STEPS, layers=names[1:2])
    assert list(path.attention) == names[1:2]


def test_thinning_keeps_both_ends() -> None:
    path = record(model(), [0], labels=0, settings=SamplingConfig(steps=12))
    thin = path.thinned(4)
    assert len(thin.sigmas) == 4
    assert (thin.sigmas[0], thin.sigmas[-1]) == (path.sigmas[0], path.sigmas[-1])
    assert torch.equal(thin.estimates[-1], path.estimates[-1])
    assert all(len(maps) == 4 for maps in thin.attention.values())
    assert path.thinned(40) is path


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_a_png_with_something_to_see(channels: int) -> None:
    path = record(model(channels=channels), [0, 1], labels=0, settings=STEPS)
    image = Image.open(io.BytesIO(picture(path)))
    assert image.format == "PNG"
    assert min(image.size) > 200
    assert np.asarray(image.convert("L")).std() > 20
