import hashlib

import numpy as np
import pytest
from PIL import Image

from diffit.data.crop import center_crop

RNG = np.random.default_rng(1)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def definition(image: Image.Image, size: int) -> np.ndarray:
    """Dhariwal and Nichol's preparation of ImageNet, in their words: box, bicubic, crop."""
    short = min(image.size)
    while short >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), Image.Resampling.BOX)
        short = min(image.size)
    scaled = tuple(round(side * (size / short)) for side in image.size)
    pixels = np.asarray(image.resize(scaled, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("side", [(64, 64), (65, 127), (200, 131), (33, 32), (20, 50), (640, 427)])
def test_the_crop_is_its_definition_pixel_by_pixel(side: tuple[int, int]) -> None:
    image = noise(*side)
    assert (np.asarray(center_crop(image, 32)) == definition(image, 32)).all()


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = noise(32, 32)
    assert (np.asarray(center_crop(image, 32)) == np.asarray(image)).all()


def test_the_middle_is_cut_from_an_image_of_the_right_height() -> None:
    image = noise(75, 32)
    assert (np.asarray(center_crop(image, 32)) == np.asarray(image)[:, 21:53]).all()


def test_halving_is_the_mean_of_pairs_along_and_then_across() -> None:
    image = noise(64, 64)
    along = np.floor(np.asarray(image).reshape(64, 32, 2, 3).mean(axis=2) + 0.5)
    blocks = np.floor(along.reshape(32, 2, 32, 3).mean(axis=1) + 0.5)
    assert (np.asarray(center_crop(image, 32)) == blocks).all()


def test_the_crop_has_not_changed() -> None:
    """A recorded digest: what was trained on yesterday is trained on tomorrow."""
    y, x = np.mgrid[0:150, 0:211]
    ramp = np.stack([(x * y) % 256, (x * x + y) % 256, (3 * x + 5 * y) % 256], axis=2)
    crop = np.asarray(center_crop(Image.fromarray(ramp.astype(np.uint8)), 32))
    assert hashlib.sha256(crop.tobytes()).hexdigest().startswith("c104969ac1a32de3")
