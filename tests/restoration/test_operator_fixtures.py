"""Operators against recorded ones: DDRM's (32b6b3c), and blurs of DPS and DiffPIR, in float64."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffit.restoration.operators import (
    BlurDecimation,
    CircularBlur,
    Mask,
    ReflectBlur,
    SpectralOperator,
    WalshHadamard,
    average_pooling,
    bicubic,
    colorization,
    separable_blur,
)
from diffit.restoration.operators.circular_blur import transfer

FIXTURES = Path(__file__).parent.parent / "fixtures"
SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(FIXTURES / "restoration_operators.safetensors")


def known(recorded: dict[str, Tensor]) -> Tensor:
    mask = torch.ones(256)
    mask[recorded["inpainting/missing_pixels"]] = 0
    return mask.reshape(16, 16)


def build(name: str, recorded: dict[str, Tensor]) -> SpectralOperator:
    if name.startswith("avgpool"):
        return average_pooling(SHAPE, int(name[-1]))
    if name.startswith("bicubic"):
        return bicubic(SHAPE, int(name[-1]))
    if name == "colorization":
        return colorization(SHAPE, (0.3333, 0.3334, 0.3333))  # as DDRM's code has it
    if name == "inpainting":
        return Mask(SHAPE, known(recorded))
    return WalshHadamard(SHAPE, 4, recorded["walsh_hadamard4/perm"])


SPECTRAL = (
    "avgpool2", "avgpool4", "bicubic2", "bicubic4", "colorization", "inpainting", "walsh_hadamard4",
)  # fmt: skip
CHANNEL_MAJOR = ("avgpool2", "avgpool4", "bicubic2", "bicubic4", "colorization")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRAL)
def test_operators_are_the_recorded_ones(
    name: str, dtype: torch.dtype, recorded: dict[str, Tensor]
) -> None:
    operator = build(name, recorded)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    y = operator(recorded["x"].to(dtype))
    if name in CHANNEL_MAJOR:  # the others number their measurements in another order
        assert (y.flatten(1) - recorded[f"{name}/y"]).abs().max() < tolerance
    assert (operator.adjoint(y) - recorded[f"{name}/adjoint_of_y"]).abs().max() < tolerance
    if f"{name}/pinv_of_y" in recorded:
        assert (operator.pinv(y) - recorded[f"{name}/pinv_of_y"]).abs().max() < tolerance


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_singular_values_are_the_recorded_ones(name: str, recorded: dict[str, Tensor]) -> None:
    expected = recorded[f"{name}/singulars_sorted"]
    own = build(name, recorded).singulars.sort(descending=True).values
    assert (own[: len(expected)] - expected).abs().max() < 1e-12
    assert (own[len(expected) :] == 0).all()


def test_circular_blur_is_the_recorded_one(recorded: dict[str, Tensor]) -> None:
    kernel = recorded["circular_blur/kernel"]
    expected = torch.complex(recorded["circular_blur/otf_real"], recorded["circular_blur/otf_imag"])
    assert (transfer(kernel, SHAPE)[0] - expected).abs().max() < 1e-12
    y = CircularBlur(SHAPE, kernel)(recorded["x"])
    assert (y - recorded["circular_blur/y"]).abs().max() < 1e-12


@pytest.mark.parametrize("factor", [1, 2])
def test_prox_of_a_blur_is_the_recorded_one(factor: int, recorded: dict[str, Tensor]) -> None:
    kernel = recorded["circular_blur/kernel"]
    operator = BlurDecimation(SHAPE, kernel, factor)
    z, rho = recorded[f"prox_sf{factor}/z"], recorded[f"prox_sf{factor}/rho"]
    expected = recorded[f"prox_sf{factor}/solution"]
    y = operator(recorded["x"])
    assert (operator.prox(z, y, rho) - expected).abs().max() < 1e-10
    if factor == 1:
        blur = CircularBlur(SHAPE, kernel)
        assert (blur.prox(z, y, rho) - expected).abs().max() < 1e-10


def test_reflected_blur_is_the_recorded_one(recorded: dict[str, Tensor]) -> None:
    y = ReflectBlur(SHAPE, recorded["reflect_blur/kernel"])(recorded["x"])
    assert (y - recorded["reflect_blur/y"]).abs().max() < 1e-12


def small(name: str, recorded: dict[str, Tensor]) -> SpectralOperator:
    shape = (3, 8, 8)
    if name == "inpaint":
        mask = torch.ones(64)
        mask[recorded["inpaint/missing_pixels"]] = 0
        return Mask(shape, mask.reshape(8, 8))
    if name == "sr":
        return average_pooling(shape, 4)
    if name == "color":
        return colorization(shape, (0.3333, 0.3334, 0.3333))
    if name == "cs":
        return WalshHadamard(shape, 4, recorded["cs/perm"])
    return separable_blur(shape, recorded["blur/kernel1d"], border="zero")


@pytest.mark.parametrize("name", ["inpaint", "sr", "color", "cs", "blur"])
def test_operators_have_the_dense_matrices_that_ddrm_was_recorded_with(name: str) -> None:
    recorded = load_file(FIXTURES / "restoration_ddrm.safetensors")
    operator, A = small(name, recorded), recorded[f"{name}/A"]
    # A'A does not depend on the order in which measurements are numbered.
    units = torch.eye(192, dtype=torch.float64).reshape(192, 3, 8, 8)
    gram = operator.adjoint(operator(units)).flatten(1)
    assert (gram - A.mT @ A).abs().max() < 1e-12
    expected = recorded[f"{name}/singulars"].sort(descending=True).values
    own = operator.singulars.sort(descending=True).values
    assert (own[: len(expected)] - expected).abs().max() < 1e-12
