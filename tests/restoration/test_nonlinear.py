"""Operators that are not linear: JPEG against Pillow, few bits, clipping, phases."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffit.data.builtin import open_builtin
from diffit.errors import UsageError
from diffit.restoration.operators import (
    Clip,
    Jpeg,
    PhaseRetrieval,
    Quantise,
    average_pooling,
    compose,
    is_linear,
    stack,
)


def photograph() -> np.ndarray:
    """Four patches of photographs, 64 x 64."""
    patches = open_builtin("patches")
    a, b, c, d = (patches[i].image for i in range(4))
    return np.concatenate([np.concatenate([a, b], 2), np.concatenate([c, d], 2)], 1)


def scaled(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).double()[None] / 127.5 - 1


def by_pillow(image: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(
        buffer, "JPEG", quality=quality, subsampling=subsampling
    )
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)


@pytest.mark.parametrize("quality", [5, 10, 50, 90])
def test_jpeg_is_that_of_pillow_but_for_rounding(quality: int) -> None:
    image = photograph()
    own = Jpeg((3, 64, 64), quality, subsample=False)(scaled(image))
    levels = ((own[0] + 1) * 127.5).clamp(0, 255).numpy()
    difference = np.abs(levels - by_pillow(image, quality, 0))
    # libjpeg rounds the colours to integers before the transform, which moves single coefficients.
    assert difference.mean() < 1.0
    assert np.median(difference) < 0.8


def test_jpeg_with_halved_colours_is_close_to_pillow_s() -> None:
    image = photograph()
    own = Jpeg((3, 64, 64), 30)(scaled(image))
    levels = ((own[0] + 1) * 127.5).clamp(0, 255).numpy()
    # Pillow's decoder interpolates the colours; ours repeats them.
    assert np.abs(levels - by_pillow(image, 30, 2)).mean() < 3


@pytest.mark.parametrize("shape", [(3, 32, 48), (1, 16, 8)])
def test_what_jpeg_has_made_comes_back_from_it(shape: tuple[int, int, int]) -> None:
    operator = Jpeg(shape, 20)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    y = operator(x)
    assert (y - x).abs().max() > 0.1
    assert (operator(operator.pinv(y)) - y).abs().max() < 1e-10


@pytest.mark.parametrize("shape", [(3, 17, 9), (1, 5, 31)])
def test_jpeg_takes_odd_sizes(shape: tuple[int, int, int]) -> None:
    x = torch.zeros(1, *shape) + 0.25
    assert Jpeg(shape, 90)(x).shape == x.shape
    assert (Jpeg(shape, 90)(x) - x).abs().max() < 0.02


@pytest.mark.parametrize(
    "operator", [Jpeg((3, 16, 16), 10), Quantise((3, 16, 16), 3)], ids=["jpeg", "quantise"]
)
def test_gradients_pass_straight_through_the_rounding(operator: Jpeg | Quantise) -> None:
    x = torch.zeros(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(operator(x).sum(), x)
    assert gradient.sum().item() == pytest.approx(x.numel())


def test_few_bits_are_the_nearest_levels() -> None:
    x = torch.tensor([-1.0, -0.4, -0.2, 0.3, 1.0]).reshape(1, 1, 1, 5)
    levels = torch.tensor([-1.0, -1 / 3, -1 / 3, 1 / 3, 1.0])
    operator = Quantise((1, 1, 5), 2)
    assert torch.allclose(operator(x).flatten(), levels)
    assert torch.allclose(operator(operator.pinv(operator(x))), operator(x))


def test_over_exposure_clips_and_its_inverse_explains_it() -> None:
    operator = Clip((1, 1, 3), 2.0)
    x = torch.tensor([-0.75, 0.25, 0.5]).reshape(1, 1, 1, 3)
    assert operator(x).flatten().tolist() == [-1, 0.5, 1]
    assert torch.equal(operator(operator.pinv(operator(x))), operator(x))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 14)])
def test_phase_retrieval_cannot_tell_an_image_from_its_half_turn(
    shape: tuple[int, int, int],
) -> None:
    operator = PhaseRetrieval(shape)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = operator(x)
    assert y.shape == (2, *operator.measured)
    assert torch.allclose(y, operator(x.flip((-2, -1))))
    assert torch.allclose(y, operator(-x))
    assert torch.allclose(y.square().sum(), x.square().sum())


def test_phase_retrieval_without_phases_gives_back_a_centred_point() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4, 4] = 1
    operator = PhaseRetrieval((1, 8, 8))
    assert torch.allclose(operator.pinv(operator(x)), x, atol=1e-6)


def test_what_holds_a_nonlinear_part_is_not_linear() -> None:
    pool = average_pooling((3, 32, 32), 2)
    jpeg = Jpeg((3, 16, 16), 30)
    x = scaled(photograph()[:, :32, :32])
    composed = compose(jpeg, pool)
    assert not is_linear(composed)
    assert torch.equal(composed(x), jpeg(pool(x)))
    assert torch.equal(composed.pinv(composed(x)), pool.pinv(jpeg(pool(x))))
    stacked = stack(pool, Clip((3, 32, 32)))
    assert not is_linear(stacked)
    assert torch.equal(
        stacked(x), torch.cat([pool(x).flatten(1), Clip((3, 32, 32))(x).flatten(1)], 1)
    )


def test_a_composition_says_what_has_no_inverse() -> None:
    pool = average_pooling((3, 8, 8), 2)
    several = stack(Clip((3, 4, 4)), Clip((3, 4, 4)))
    with pytest.raises(ValueError, match="Stacked has no inverse"):
        compose(several, pool).pinv(torch.zeros(1, 96))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jpeg((3, 8, 8), 0), "a JPEG quality of 0; give one from 1 to 100"),
        (lambda: Jpeg((4, 8, 8), 50), "JPEG holds 1 or 3 channels, not 4"),
        (lambda: Quantise((3, 8, 8), 9), "a pixel of 9 bits; give 1 to 8"),
        (lambda: Clip((3, 8, 8), 0.5), "a gain of 0.5 clips nothing"),
        (lambda: Clip((3, 8, 8), float("nan")), "a gain of nan clips nothing"),
    ],
)
def test_nonsense_is_refused(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
