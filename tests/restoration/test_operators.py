"""Every operator: adjoint, pseudo-inverse, singular value decomposition, prox, dense matrices."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from diffit import draws
from diffit.errors import UsageError
from diffit.restoration import kernels
from diffit.restoration.operators import (
    BT601,
    BlockSensing,
    BlurDecimation,
    Channels,
    CircularBlur,
    Fourier,
    Identity,
    LinearOperator,
    Mask,
    Operator,
    Radon,
    ReflectBlur,
    WalshHadamard,
    average_pooling,
    bicubic,
    check_measurement,
    colorization,
    compose,
    enlarge,
    is_linear,
    is_spectral,
    radon,
    separable_blur,
    stack,
)
from diffit.restoration.operators.tensors import size

EVEN, ODD = (3, 8, 8), (3, 9, 7)


def random_mask(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) > 0.4


def mixing(bands: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(bands, channels, generator=generator, dtype=torch.float64)


def skew_line(size: int) -> Tensor:
    return skew(1, size)[0]


def skew(height: int, width: int) -> Tensor:
    """A kernel without symmetry: a flip would show."""
    kernel = torch.arange(1.0, height * width + 1, dtype=torch.float64).reshape(height, width)
    return kernel**2 / (kernel**2).sum()


def dirac(height: int, width: int) -> Tensor:
    kernel = torch.zeros(height, width, dtype=torch.float64)
    kernel[height // 2, width // 2] = 1
    return kernel


def mild() -> Tensor:
    return 0.3 * skew(3, 3) + dirac(3, 3)


def order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(4))


def stream() -> np.random.Generator:
    return draws.generator(0, 0, "operators")


SPECTRAL: dict[str, Callable[[], Operator]] = {
    "identity": lambda: Identity(ODD),
    "mask": lambda: Mask(ODD, random_mask(9, 7)),
    "mask-of-channels": lambda: Mask(ODD, random_mask(3, 9, 7)),
    "mask-per-image": lambda: Mask(ODD, random_mask(2, 1, 9, 7)),
    "pool-2": lambda: average_pooling(EVEN, 2),
    "pool-3-odd": lambda: average_pooling((3, 9, 15), 3),
    "pool-grey": lambda: average_pooling((1, 8, 4), 4),
    "grey-mean": lambda: colorization(ODD),
    "grey-luma": lambda: colorization(ODD, BT601),
    "bands-2": lambda: Channels(ODD, mixing(2, 3)),
    "bands-5": lambda: Channels(ODD, mixing(5, 3)),
    "bicubic-2": lambda: bicubic(EVEN, 2),
    "bicubic-3-odd": lambda: bicubic((3, 9, 15), 3),
    "bicubic-4-tiny": lambda: bicubic((1, 4, 8), 4),
    "blur-mirror": lambda: separable_blur(ODD, kernels.gaussian_line(5, 1.0)),
    "blur-zero": lambda: separable_blur(ODD, skew_line(3), skew_line(5), border="zero"),
    "blur-wider-than-the-image": lambda: separable_blur((1, 4, 5), skew_line(9)),
    "blur-floor": lambda: separable_blur(ODD, kernels.gaussian_line(7, 2.0), floor=0.03),
    "hadamard-4": lambda: WalshHadamard(EVEN, 4, order(64)),
    "hadamard-odd": lambda: WalshHadamard(ODD, 3, order(63)),
    "blocks": lambda: BlockSensing((2, 8, 12), 3, stream(), block=4),
    "fourier": lambda: Fourier(EVEN, random_mask(8, 8)),
    "fourier-odd": lambda: Fourier(ODD, random_mask(9, 7)),
    "fourier-per-image": lambda: Fourier(ODD, random_mask(2, 9, 7)),
    "circular": lambda: CircularBlur(ODD, skew(5, 3)),
    "circular-even": lambda: CircularBlur(EVEN, skew(3, 5)),
    "circular-per-image": lambda: CircularBlur(ODD, torch.stack([skew(3, 3), skew(3, 3).flip(0)])),
    "circular-lost-frequencies": lambda: CircularBlur(EVEN, kernels.uniform(5), floor=0.03),
}
LINEAR: dict[str, Callable[[], Operator]] = {
    **SPECTRAL,
    "blur-decimation": lambda: BlurDecimation(EVEN, skew(3, 5), 2),
    "blur-decimation-odd": lambda: BlurDecimation((3, 9, 15), skew(5, 3), 3),
    "blur-decimation-per-image": lambda: BlurDecimation(
        EVEN, torch.stack([skew(3, 3), skew(3, 3).flip(1)]), 4
    ),
    "reflect": lambda: ReflectBlur(ODD, mild()),
    "reflect-wide": lambda: ReflectBlur((1, 4, 5), 0.2 * skew(7, 9) + dirac(7, 9)),
    "reflect-per-image": lambda: ReflectBlur(EVEN, torch.stack([mild(), mild().flip(0)])),
    "radon": lambda: Radon((2, 8, 8), torch.linspace(0, math.pi, 6)[:-1]),
    "radon-odd-limited": lambda: Radon((1, 9, 7), torch.linspace(0.1, 1.7, 4)),
    "composed": lambda: compose(average_pooling((1, 8, 8), 2), colorization(EVEN)),
    "composed-blurred": lambda: compose(Mask(ODD, random_mask(9, 7)), CircularBlur(ODD, mild())),
    "stacked": lambda: stack(average_pooling(EVEN, 4), colorization(EVEN)),
}

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
DTYPES = sorted(TOLERANCE, key=str)


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)


def dense(operator: Operator) -> Tensor:
    """(2, m, n) float64: columns are A applied to unit images, for each image of a batch of 2."""
    n = size(operator.shape)
    units = torch.eye(n, dtype=torch.float64).unflatten(1, operator.shape)
    columns = [operator(unit.expand(2, *operator.shape)).flatten(1) for unit in units]
    return torch.stack(columns, dim=2)


def close(a: Tensor, b: Tensor, dtype: torch.dtype, factor: float = 1.0) -> bool:
    scale = max(b.abs().max().item(), 1.0)
    return bool((a - b).abs().max() <= factor * TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LINEAR)
def test_the_adjoint_moves_to_the_other_side_of_the_product(name: str, dtype: torch.dtype) -> None:
    operator = LINEAR[name]()
    assert isinstance(operator, LinearOperator)
    x, y = draw(operator.shape, dtype, 3), draw(operator.measured, dtype, 4)
    image = operator(x)
    assert image.shape == (2, *operator.measured)
    assert image.dtype == dtype
    left, right = (image * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
    norms = image.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
    assert ((left - right).abs() <= TOLERANCE[dtype] * norms).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LINEAR)
def test_the_pseudo_inverse_explains_what_was_measured(name: str, dtype: torch.dtype) -> None:
    operator = LINEAR[name]()
    assert isinstance(operator, LinearOperator)
    y = operator(draw(operator.shape, dtype, 3))
    # Conjugate gradients stop where the condition of A, squared, lets rounding in.
    assert close(operator(operator.pinv(y)), y, dtype, 10 if name in SPECTRAL else 1e3)


@pytest.mark.parametrize("name", LINEAR)
def test_operators_are_what_their_dense_matrices_say(name: str) -> None:
    operator = LINEAR[name]()
    assert isinstance(operator, LinearOperator)
    A = dense(operator)
    x, y = draw(operator.shape, torch.float64, 3), draw(operator.measured, torch.float64, 4)
    flat = (A @ x.flatten(1)[..., None])[..., 0]
    assert close(operator(x).flatten(1), flat, torch.float64)
    back = (A.mT @ y.flatten(1)[..., None])[..., 0]
    assert close(operator.adjoint(y).flatten(1), back, torch.float64)
    inverse = (torch.linalg.pinv(A, rtol=1e-9) @ y.flatten(1)[..., None])[..., 0]
    assert close(operator.pinv(y).flatten(1), inverse, torch.float64, 1e3)


@pytest.mark.parametrize("name", LINEAR)
def test_prox_leaves_no_gradient(name: str) -> None:
    operator = LINEAR[name]()
    assert isinstance(operator, LinearOperator)
    z, y = draw(operator.shape, torch.float64, 5), draw(operator.measured, torch.float64, 6)
    rho = torch.tensor([0.3, 2.0], dtype=torch.float64)
    x = operator.prox(z, y, rho)
    gradient = operator.adjoint(operator(x) - y) + rho[:, None, None, None] * (x - z)
    assert gradient.abs().max() < 1e-9
    assert torch.allclose(operator.prox(z, y, 0.3)[0], x[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRAL)
def test_the_factors_are_orthogonal_and_multiply_to_the_operator(
    name: str, dtype: torch.dtype
) -> None:
    operator = SPECTRAL[name]()
    assert is_spectral(operator)
    x, y = draw(operator.shape, dtype, 3), draw(operator.measured, dtype, 4)
    s = operator.singulars.to(dtype)
    assert (operator.singulars >= 0).all()
    assert s.shape[-1] == size(operator.shape)
    assert close(operator.v(operator.vt(x)), x, dtype, 3)
    assert close(operator.u(s * operator.vt(x)), operator(x), dtype, 3)
    assert close(operator.v(s * operator.ut(y)), operator.adjoint(y), dtype, 3)
    z = operator.vt(x) * (s > 0)
    assert close(operator.ut(operator.u(z)), z, dtype, 3)
    assert close(operator.ut(operator.u(operator.vt(x))), z, dtype, 3)
    assert ((operator.ut(y) == 0) | (s > 0)).all()


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_singular_values_are_those_of_the_dense_matrix(name: str) -> None:
    operator = SPECTRAL[name]()
    expected = torch.linalg.svdvals(dense(operator))
    own = operator.singulars.expand(2, -1).sort(dim=1, descending=True).values
    count = expected.shape[1]
    assert torch.allclose(own[:, :count], expected, rtol=0, atol=1e-10)
    assert (own[:, count:] == 0).all()


@pytest.mark.parametrize("name", LINEAR)
def test_operators_are_differentiable_and_the_gradient_is_the_adjoint(name: str) -> None:
    operator = LINEAR[name]()
    assert is_linear(operator)
    x = draw(operator.shape, torch.float64, 3).requires_grad_()
    y = draw(operator.measured, torch.float64, 4)
    (gradient,) = torch.autograd.grad((operator(x) * y).sum(), x)
    assert close(gradient, operator.adjoint(y), torch.float64)


def test_a_mask_leaves_what_is_not_finite_outside() -> None:
    mask = torch.ones(4, 4)
    mask[0, 0] = 0
    y = torch.zeros(1, 3, 4, 4)
    y[..., 0, 0] = float("nan")
    assert (Mask((3, 4, 4), mask).adjoint(y) == 0).all()


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match="the mask is 5 x 4 pixels and the image 4 x 4"):
        Mask((3, 4, 4), torch.ones(5, 4))


def test_a_mask_that_is_neither_0_nor_1_is_refused() -> None:
    with pytest.raises(UsageError, match="values other than 0"):
        Mask((3, 4, 4), torch.full((4, 4), 0.5))


def test_a_mask_with_two_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="the mask has 2 channels; give 1 or 3"):
        Mask((3, 4, 4), torch.ones(2, 4, 4))


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="a factor of 4 does not divide 10 x 8 pixels"):
        average_pooling((3, 10, 8), 4)


def test_a_mixing_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mixing is \(bands, 3\)"):
        Channels((3, 4, 4), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bicubic((3, 9, 8), 2), "a factor of 2 does not divide 9 x 8 pixels"),
        (lambda: BlurDecimation(EVEN, skew(3, 3), 3), "a factor of 3 does not divide 8 x 8"),
        (lambda: CircularBlur(EVEN, skew(9, 3)), "kernel of 9 x 3 is larger than the image"),
        (lambda: CircularBlur(EVEN, torch.zeros(3, 3)), "the blur kernel sums to zero"),
        (lambda: CircularBlur(EVEN, torch.ones(2, 3)), "kernel of 2 x 3 has no centre"),
        (lambda: ReflectBlur(EVEN, torch.full((3, 3), math.nan)), "numbers that are not finite"),
        (lambda: ReflectBlur(EVEN, skew(17, 3)), "17 x 3 is too large to mirror an image of 8 x 8"),
        (lambda: separable_blur(EVEN, torch.tensor([1.0, -2.0, 1.0])), "sums to zero"),
        (lambda: WalshHadamard(EVEN, 65, order(64)), "1 / 65 measures nothing of 64 pixels"),
        (lambda: BlockSensing(EVEN, 2, stream(), block=3), "blocks of 3 x 3 do not divide 8 x 8"),
        (lambda: BlockSensing(EVEN, 17, stream(), block=4), "1 / 17 measures nothing of 16"),
        (lambda: Fourier(EVEN, torch.ones(8, 7)), "the pattern of frequencies has shape"),
        (lambda: Fourier(EVEN, torch.full((8, 8), 0.5)), "values other than 0 and 1"),
    ],
)
def test_what_fits_no_image_is_refused(make: Callable[[], Operator], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_operators_of_other_shapes_do_not_compose() -> None:
    with pytest.raises(ValueError, match="the outer one takes"):
        compose(average_pooling(EVEN, 2), colorization(EVEN))
    with pytest.raises(ValueError, match="images of one shape"):
        stack(Identity(EVEN), Identity(ODD))


def test_a_projection_sums_to_what_the_image_sums_to() -> None:
    operator = Radon((2, 12, 9), torch.tensor([0.0, 0.4, math.pi / 4, 1.2, math.pi / 2, 2.9]))
    x = draw((2, 12, 9), torch.float64, 3)
    total = operator(x).sum(-1) * 12
    assert torch.allclose(total, x.sum((-2, -1))[..., None].expand_as(total))


def test_projections_along_the_axes_are_sums_of_rows_and_columns() -> None:
    operator = Radon((1, 9, 9), torch.tensor([0.0, math.pi / 2]))
    x = draw((1, 9, 9), torch.float64, 3)
    down, across = (operator(x) * 9).unbind(2)
    middle = (operator.measured[-1] - 9) // 2
    assert torch.allclose(down[..., middle : middle + 9], x.sum(-2), atol=1e-6)
    assert torch.allclose(across[..., middle : middle + 9], x.sum(-1), atol=1e-6)


def test_the_projection_of_a_disc_is_its_chords() -> None:
    side, radius = 65, 20.0
    place = torch.arange(side, dtype=torch.float64) - side // 2
    disc = (place[:, None] ** 2 + place**2 <= radius**2).double()[None, None]
    operator = Radon((1, side, side), torch.tensor([0.3, 1.9]))
    t = torch.arange(operator.measured[-1], dtype=torch.float64) - (operator.measured[-1] - 1) / 2
    chords = 2 * (radius**2 - t**2).clamp(min=0).sqrt() / side
    assert (operator(disc)[0, 0] - chords).abs().mean() < 0.01


def test_back_projection_of_many_angles_brings_a_smooth_image_back() -> None:
    place = torch.linspace(-1, 1, 48, dtype=torch.float64)
    bump = (-8 * (place[:, None] ** 2 + (place - 0.2) ** 2)).exp()[None, None]
    operator = Radon((1, 48, 48), torch.arange(90) * math.pi / 90)
    assert (operator.back_projection(operator(bump)) - bump).abs().max() < 0.02


def test_a_measurement_is_checked() -> None:
    operator = average_pooling(EVEN, 2)
    check_measurement(torch.ones(2, 3, 4, 4), operator)
    with pytest.raises(UsageError, match=r"has shape \(3, 8, 8\).*measures \(3, 4, 4\)"):
        check_measurement(torch.ones(2, 3, 8, 8), operator)
    with pytest.raises(UsageError, match="not finite; mend or mask them"):
        check_measurement(torch.full((1, 3, 4, 4), math.nan), operator)
    with pytest.raises(UsageError, match="reaches 255, beyond what images in"):
        check_measurement(torch.full((1, 3, 4, 4), 255.0), operator)


@pytest.mark.parametrize("name", LINEAR)
def test_the_white_image_passes_the_check_of_measurements(name: str) -> None:
    operator = LINEAR[name]()
    check_measurement(operator(torch.ones(2, *operator.shape)), operator)


def test_angles_must_be_finite() -> None:
    with pytest.raises(ValueError, match="at least one finite angle"):
        Radon(EVEN, torch.tensor([math.inf]))


def test_an_order_must_be_a_permutation() -> None:
    with pytest.raises(ValueError, match="a permutation of the 64 coeff"):
        WalshHadamard(EVEN, 2, torch.zeros(64, dtype=torch.long))


def test_conjugate_gradients_of_one_image_do_not_see_the_others() -> None:
    operator = ReflectBlur(ODD, mild())
    y = draw(operator.measured, torch.float32, 7)
    y[1] *= 1e-3
    alone = torch.cat([operator.pinv(row[None]) for row in y])
    assert torch.allclose(operator.pinv(y), alone, rtol=1e-4, atol=1e-7)


def test_enlargement_puts_pixels_where_the_reduction_took_them() -> None:
    place = torch.linspace(0, 3, 24, dtype=torch.float64)
    wave = (place[:, None] + 0.5 * place).sin()[None, None]
    inside = (slice(4, -4), slice(4, -4))
    pooled = enlarge(average_pooling((1, 24, 24), 2)(wave), 2)
    assert (pooled - wave)[..., *inside].abs().max() < 0.01
    corners = enlarge(wave[..., ::2, ::2], 2, corner=True)
    assert (corners - wave)[..., *inside].abs().max() < 0.001
    assert (enlarge(wave[..., ::2, ::2], 2) - wave)[..., *inside].abs().max() > 0.05


def test_projections_that_are_not_kept_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = torch.linspace(0, 3, 5)
    x, y = draw((2, 9, 7), torch.float32, 3), draw((2, 5, 14), torch.float32, 4)
    kept = Radon((2, 9, 7), angles)
    monkeypatch.setattr(radon, "MAX_KEPT", 2 * 3 * 63)
    other = Radon((2, 9, 7), angles)
    assert torch.equal(other(x), kept(x))
    assert torch.equal(other.adjoint(y), kept.adjoint(y))
