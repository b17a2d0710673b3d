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
)
from diffit.restoration.operators.circular_blur import transfer

FIXTURE = Path(__file__).parent.parent / "fixtures" / "restoration_operators.safetensors"
SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(FIXTURE)


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
