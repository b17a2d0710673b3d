"""Tiles: exact where a tile knows enough, without seams where it does not."""

import pytest
import torch
import torch.nn.functional as F

from autoencoders import make
from diffit.codecs import Autoencoder, AutoencoderConfig
from diffit.codecs.tiles import tiled


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 8), (9, 30), (31, 17), (5, 40)])
def test_what_acts_on_pixels_alone_is_exact(size):
    x = noise(2, 3, *size)
    torch.testing.assert_close(tiled(torch.exp, x, tile=8), x.exp())


@pytest.mark.parametrize("size", [(40, 64), (64, 72)])
def test_larger_and_smaller_answers_lie_where_they_belong(size):
    x = noise(1, 1, *size)
    larger = tiled(lambda t: F.interpolate(t, scale_factor=4.0), x, tile=16)
    torch.testing.assert_close(larger, F.interpolate(x, scale_factor=4.0))
    smaller = tiled(lambda t: F.avg_pool2d(t, 8), x, tile=32, multiple=8)
    torch.testing.assert_close(smaller, F.avg_pool2d(x, 8))


def test_tiles_are_all_of_one_size_and_few():
    seen = []

    def watch(t):
        seen.append(tuple(t.shape[2:]))
        return t

    tiled(watch, noise(1, 1, 100, 20), tile=32)
    assert seen == [(32, 20)] * 4  # 3 tiles would overlap too little: 32 + 2 * 24 < 100


def test_a_seam_fades():
    # Each tile answers with a value of its own: the steps between neighbouring pixels are small.
    values = iter(torch.arange(100, dtype=torch.float64))
    answer = tiled(lambda t: torch.full_like(t, float(next(values))), noise(1, 1, 32, 200), tile=32)
    assert answer.diff(dim=3).abs().max() <= 0.25
    assert answer.max() == 7


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to cut into tiles"):
        tiled(torch.exp, noise(1, 1, 0, 4), tile=4)


def test_convolutions_that_see_no_further_than_the_margin_are_exact():
    kernel = torch.full((1, 1, 5, 5), 0.04, dtype=torch.float64)
    x = noise(1, 1, 100, 150)
    whole = F.conv2d(x, kernel, padding=2)
    torch.testing.assert_close(
        tiled(lambda t: F.conv2d(t, kernel, padding=2), x, tile=64), whole
    )  # 64 / OVERLAP / MARGIN is 4, more than the kernel's 2


def picture() -> torch.Tensor:
    """A smooth image of 192 x 256 pixels."""
    coarse = noise(1, 3, 5, 7) * 60 + 128
    return F.interpolate(coarse, (192, 256), mode="bicubic").clamp(0, 255).byte()


def test_a_tiny_autoencoder_is_nearly_exact(tmp_path):
    pytest.importorskip("diffusers")
    make("tiny", tmp_path)
    whole, parts = (Autoencoder(AutoencoderConfig(path=str(tmp_path), tile=t)) for t in (0, 128))
    x, y = whole.encode(picture()), parts.encode(picture())
    assert y.shape == x.shape == (1, 4, 48, 64)
    assert (y - x).abs().max() <= 1e-2 * x.abs().max()
    assert (parts.decode(x).int() - whole.decode(x).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_what_looks_at_the_whole_image_leaves_no_seam(kind, tmp_path):
    """Norms and attention see a tile alone: the answer shifts, but nowhere in a step."""
    pytest.importorskip("diffusers")
    make(kind, tmp_path)
    whole, parts = (Autoencoder(AutoencoderConfig(path=str(tmp_path), tile=t)) for t in (0, 128))
    x = whole.encode(picture())
    a, b = whole.pixels(x), parts.pixels(x)
    error = (b - a) / a.std()
    assert 0 < error.abs().mean() < 0.3
    steps = error.diff(dim=3).abs().mean(dim=(0, 1, 2))
    assert steps.max() < 8 * steps.median()
