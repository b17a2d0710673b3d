"""Lengths and images in the units of [0, 1] and of [-1, 1]."""

import pytest
import torch

from diffit.errors import DataError
from diffit.explain.units import (
    check_images,
    from_pm1,
    images_from_pm1,
    images_to_pm1,
    in_both,
    to_pm1,
)


def test_a_length_is_twice_as_long_where_pixels_lie_in_minus_one_to_one():
    assert to_pm1(0.25, "01") == 0.5
    assert to_pm1(0.25, "pm1") == 0.25
    assert in_both(0.5) == {"01": 0.25, "pm1": 0.5}


def test_lengths_and_images_agree():
    a, b = torch.rand(
        2, 1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    apart = float((images_to_pm1(a) - images_to_pm1(b)).norm())
    assert apart == pytest.approx(to_pm1(float((a - b).norm()), "01"))
    assert from_pm1(apart, "01") == pytest.approx(float((a - b).norm()))
    torch.testing.assert_close(images_from_pm1(images_to_pm1(a)), a)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 4, 4), 200.0), "from 200 to 200; they must lie in"),
        (torch.full((1, 3, 4, 4), float("nan")), "from nan to nan"),
        (torch.zeros(3, 4, 4), "must be a floating tensor"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "must be a floating tensor"),
        (torch.zeros(0, 3, 4, 4), "must be a floating tensor"),
    ],
)
def test_what_are_no_images_in_minus_one_to_one_is_refused(images, message):
    with pytest.raises(DataError, match=message):
        check_images(images)


def test_images_at_the_ends_are_welcome():
    check_images(torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2))
