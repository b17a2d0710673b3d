"""Masks: how much each leaves, the same for the same seed, and what is refused in a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffit import draws
from diffit.data.images import write_png
from diffit.errors import DataError, UsageError
from diffit.restoration import masks

RANDOM: dict[str, Callable[[int, int, np.random.Generator], Tensor]] = {
    "box": masks.box,
    "random": masks.random,
    "freeform-thick": lambda h, w, g: masks.freeform(h, w, g, thick=True),
    "freeform-thin": lambda h, w, g: masks.freeform(h, w, g, thick=False),
}


def stream(seed: int) -> np.random.Generator:
    return draws.generator(seed, 0, "mask")


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (8, 8)])
@pytest.mark.parametrize("name", RANDOM)
def test_masks_hold_0_and_1_and_follow_from_the_seed(name: str, size: tuple[int, int]) -> None:
    make = RANDOM[name]
    mask = make(*size, stream(0))
    assert mask.shape == size
    assert mask.unique().tolist() == [0, 1]
    assert torch.equal(mask, make(*size, stream(0)))
    assert not torch.equal(mask, make(*size, stream(5)))


def test_a_box_leaves_three_quarters() -> None:
    assert masks.box(32, 40, stream(0)).mean() == 0.75


def test_random_pixels_are_missing_exactly() -> None:
    assert masks.random(32, 40, stream(0), missing=0.7).mean() == pytest.approx(0.3)


def test_thick_strokes_cover_more_than_thin_ones() -> None:
    def missing(thick: bool) -> float:
        return (
            sum(1 - masks.freeform(64, 64, stream(i), thick=thick).mean() for i in range(20)) / 20
        )

    assert 0.1 < missing(False) < missing(True) < 0.6


def test_regular_masks_know_what_they_say() -> None:
    assert masks.every_nth(4, 5).tolist() == [[1, 0, 1, 0, 1], [0] * 5] * 2
    assert masks.half(1, 5).tolist() == [[1, 1, 1, 0, 0]]
    assert masks.outpainting(4, 4).sum() == 4
    assert masks.outpainting(4, 4)[1:3, 1:3].sum() == 4
    assert masks.outpainting(1, 1).sum() == 1


def test_frequency_lines_hold_the_lowest_and_as_many_as_asked() -> None:
    lines = masks.frequency_lines(64, stream(0), acceleration=4)
    assert lines.sum() == 16
    assert lines[[0, 1, 2, 63, 62]].sum() == 5
    assert torch.equal(lines, masks.frequency_lines(64, stream(0), acceleration=4))
    assert not torch.equal(lines, masks.frequency_lines(64, stream(1), acceleration=4))
    assert masks.frequency_lines(3, stream(0), acceleration=8).tolist() == [1, 0, 0]


def test_a_mask_is_read_white_is_known(tmp_path: Path) -> None:
    levels = np.zeros((1, 3, 4), np.uint8)
    levels[0, 0] = 255
    levels[0, 1, 0] = 200
    write_png(tmp_path / "mask.png", levels)
    mask = masks.read_mask(tmp_path / "mask.png", 3, 4)
    assert mask.tolist() == [[1] * 4, [1, 0, 0, 0], [0] * 4]


@pytest.mark.parametrize(
    ("level", "size", "message"),
    [
        (0, (5, 4), "is 3 x 4 pixels and the image 5 x 4; give a mask of the size"),
        (0, (3, 4), "is all black: nothing is known; paint black what is to be filled in"),
        (255, (3, 4), "is all white: nothing is missing"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    level: int, size: tuple[int, int], message: str, tmp_path: Path
) -> None:
    write_png(tmp_path / "mask.png", np.full((1, 3, 4), level, np.uint8))
    with pytest.raises(UsageError, match=message):
        masks.read_mask(tmp_path / "mask.png", *size)


def test_a_mask_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_text("mask")
    with pytest.raises(DataError, match="is no image that can be read"):
        masks.read_mask(tmp_path / "mask.png", 3, 4)
