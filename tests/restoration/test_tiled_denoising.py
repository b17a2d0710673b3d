import itertools

import pytest
import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.tiles import MAX_SEAM, corners, seam, tiled
from oracle import Gaussian

SIZE = (8, 8)


def noisy(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def neighbours(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that sees one pixel further in each direction, and nothing beyond its tile."""
    kernel = torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)
    return torch.nn.functional.conv2d(x, kernel, padding=1, groups=x.shape[1])


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 3, 19, 8), (2, 1, 23, 31), (1, 2, 64, 64)])
def test_a_white_prior_does_not_notice_tiles(shape: tuple[int, ...]) -> None:
    x, sigma = noisy(*shape), torch.tensor(0.5, dtype=torch.float64)
    whole = Gaussian()(x, sigma)
    for overlap in (0, 1, 4):
        parts = tiled(Gaussian(), SIZE, overlap=overlap, batch=5)(x, sigma)
        assert torch.allclose(parts, whole, rtol=0, atol=1e-14)


def test_each_image_has_its_own_level() -> None:
    x, sigma = noisy(3, 1, 12, 20), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    parts = tiled(Gaussian(), SIZE, overlap=2, batch=4)(x, sigma)
    assert torch.allclose(parts, Gaussian()(x, sigma), rtol=0, atol=1e-14)


def test_the_number_of_tiles_at_once_changes_nothing() -> None:
    x, sigma = noisy(2, 3, 21, 17), torch.tensor(1.0)
    one = tiled(neighbours, SIZE, overlap=3, batch=1)(x, sigma)
    assert torch.allclose(tiled(neighbours, SIZE, overlap=3, batch=100)(x, sigma), one, atol=1e-14)


def test_no_more_tiles_than_allowed_are_computed_at_once() -> None:
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    tiled(denoise, SIZE, overlap=4, batch=7)(noisy(2, 1, 32, 32), torch.tensor(1.0))
    assert max(seen) == 7
    assert sum(seen) == 2 * 7 * 7


def test_tiles_overlap_by_no_less_than_asked_and_cover_the_image() -> None:
    for length in range(8, 60):
        for overlap in range(5):
            lefts = [left for _, left in corners((8, length), SIZE, overlap)]
            assert lefts[0] == 0
            assert lefts[-1] == length - 8
            assert all(0 < b - a <= 8 - overlap for a, b in itertools.pairwise(lefts))


def test_gradients_are_those_of_the_whole_image() -> None:
    x, sigma = noisy(1, 1, 20, 20).requires_grad_(), torch.tensor(0.7, dtype=torch.float64)
    whole = torch.autograd.grad((Gaussian()(x, sigma) ** 2).sum(), x)[0]
    parts = torch.autograd.grad((tiled(Gaussian(), SIZE, overlap=3)(x, sigma) ** 2).sum(), x)[0]
    assert torch.allclose(parts, whole, rtol=0, atol=1e-13)


def test_blending_hides_that_tiles_disagree() -> None:
    """A model that takes each tile for brighter or darker as a whole makes steps between tiles."""

    def moody(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.1 * x + 5 * x.mean((-2, -1), keepdim=True)

    x = noisy(1, 3, 80, 80)
    hard, soft = (
        seam(tiled(moody, SIZE, overlap=overlap)(x, torch.tensor(1.0)), SIZE, overlap)
        for overlap in (0, 4)
    )
    assert hard > 2
    assert soft - 1 < (hard - 1) / 4


def test_a_seam_is_found_where_it_is() -> None:
    image = noisy(1, 3, 40, 40, seed=1)
    assert seam(image, SIZE, 0) == pytest.approx(1, abs=0.1)
    image[..., :8] += 5  # a step from one tile to the next
    assert seam(image, SIZE, 0) > MAX_SEAM + 0.2
    assert seam(image[..., :8, :8], SIZE, 0) == 1  # one tile has no seam
    assert seam(torch.zeros(1, 1, 20, 20), SIZE, 2) == 1


def test_what_cannot_be_tiled_is_refused() -> None:
    with pytest.raises(UsageError, match=r"is 7 x 20 pixels.*at least as large"):
        tiled(Gaussian(), SIZE, overlap=2)(noisy(1, 1, 7, 20), torch.tensor(1.0))
    with pytest.raises(UsageError, match="cannot overlap by 5 pixels; give 0 to 4"):
        tiled(Gaussian(), SIZE, overlap=5)
    with pytest.raises(UsageError, match="0 tiles at once are none"):
        tiled(Gaussian(), SIZE, overlap=1, batch=0)
