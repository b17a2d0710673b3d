"""The three rules of resizing against their definitions, pixel by pixel."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffit.evaluation.resize import area, half_pixel, legacy, resize


def image(height: int, width: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (1, 2, height, width), generator=draws, dtype=torch.uint8)


def bilinear(x: torch.Tensor, size: int, offset: float) -> torch.Tensor:
    """Bilinear interpolation at (i + offset) scale - offset, one output pixel after the other."""
    height, width = x.shape[-2:]
    out = torch.zeros(*x.shape[:2], size, size, dtype=torch.float64)

    def taps(i: int, length: int) -> list[tuple[int, float]]:
        place = max((i + offset) * length / size - offset, 0)
        low = min(math.floor(place), length - 1)
        high = min(low + 1, length - 1)
        return [(low, 1 - (place - low)), (high, place - low)]

    for row in range(size):
        for column in range(size):
            for y, a in taps(row, height):
                for z, b in taps(column, width):
                    out[..., row, column] += a * b * x[..., y, z].double()
    return out.float()


@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 11), (9, 6, 4), (8, 8, 13)])
def test_half_pixel_and_legacy_follow_their_definitions(height, width, size):
    x = image(height, width)
    for rule, offset in ((half_pixel, 0.5), (legacy, 0.0)):
        torch.testing.assert_close(
            resize(x, size, rule), bilinear(x, size, offset), atol=1e-4, rtol=1e-5
        )


def test_half_pixel_is_what_pytorch_does_without_antialiasing():
    for side in (32, 64, 400):
        x = image(side, side)
        # In double precision: in single, PyTorch's positions are off by some 1e-5 of a pixel.
        theirs = F.interpolate(x.double(), (299, 299), mode="bilinear", align_corners=False)
        torch.testing.assert_close(resize(x, 299, half_pixel), theirs.float(), atol=1e-4, rtol=0)


def test_legacy_copies_the_first_pixel_of_each_pair_when_doubling():
    x = image(6, 6)
    torch.testing.assert_close(resize(x, 12, legacy)[..., ::2, ::2], x.float())
    assert not torch.allclose(resize(x, 12, half_pixel)[..., ::2, ::2], x.float())


def test_area_averages_whole_blocks_and_keeps_the_mean_of_fractions():
    x = image(24, 24)
    torch.testing.assert_close(resize(x, 8, area), F.avg_pool2d(x.float(), 3))
    x = image(20, 28)
    torch.testing.assert_close(resize(x, 8, area).mean(), x.float().mean())
    # 3 pixels onto 2: each output holds one whole pixel and half of the middle one.
    expected = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64) / 3
    torch.testing.assert_close(area(3, 2), expected)


@pytest.mark.parametrize("rule", [half_pixel, legacy, area])
def test_weights_sum_to_one_and_an_image_of_the_size_is_kept(rule):
    for length, size in ((7, 19), (19, 7), (8, 8)):
        assert torch.allclose(rule(length, size).sum(1), torch.ones(size, dtype=torch.float64))
    x = image(8, 8)
    assert torch.equal(resize(x, 8, rule), x.float())
