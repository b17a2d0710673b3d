from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffit.errors import DataError, UsageError
from diffit.evaluation.images import luma, psnr, ssim

RECORDED = load_file(
    Path(__file__).parent.parent / "fixtures" / "restoration_metrics.safetensors"
)  # of scikit-image and BasicSR


def pair(number: int, suffix: str = "") -> tuple[Tensor, Tensor]:
    return RECORDED[f"pair{number}/a{suffix}"][None], RECORDED[f"pair{number}/b{suffix}"][None]


@pytest.mark.parametrize("number", [0, 1])
def test_zero_shot_values_are_those_of_scikit_image(number: int) -> None:
    a, b = pair(number)
    assert float(psnr(a, b)) == pytest.approx(float(RECORDED[f"pair{number}/psnr_rgb"]), abs=1e-9)
    expected = float(RECORDED[f"pair{number}/ssim_gauss_rgb"])
    assert float(ssim(a, b)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("crop", [2, 4])
def test_super_resolution_values_are_those_of_basicsr(number: int, crop: int) -> None:
    a, b = pair(number, "_uint8")
    for name, measure in (("psnr", psnr), ("ssim", ssim)):
        expected = float(RECORDED[f"pair{number}/{name}255_y_crop{crop}"])
        value = float(measure(a, b, convention="super-resolution", factor=crop))
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_deblurring_values_are_of_rgb_without_a_border_cut(number: int) -> None:
    a, b = pair(number, "_uint8")
    for name, measure in (("psnr", psnr), ("ssim", ssim)):
        expected = float(RECORDED[f"pair{number}/{name}255_rgb_crop0"])
        assert float(measure(a, b, convention="deblur")) == pytest.approx(expected, abs=1e-9)


def test_each_image_has_its_own_value() -> None:
    a, b = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    alone = torch.cat([psnr(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    assert torch.equal(psnr(a, b), alone)
    assert psnr(a, a).tolist() == [torch.inf] * 3
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1], abs=1e-12)


def test_white_has_luma_235() -> None:
    assert float(luma(torch.ones(1, 3, 1, 1, dtype=torch.float64))) == pytest.approx(235, abs=1e-9)


def test_what_cannot_be_compared_is_refused() -> None:
    small = torch.rand(1, 3, 8, 8)
    with pytest.raises(DataError, match=r"SSIM needs images of at least 11 x 11 pixels.*PSNR"):
        ssim(small, small)
    with pytest.raises(DataError, match="cannot be compared"):
        psnr(small, small[..., :4])
    with pytest.raises(DataError, match="not finite"):
        psnr(small * torch.nan, small)
    with pytest.raises(DataError, match="leaves nothing"):
        psnr(small, small, convention="super-resolution", factor=4)
    with pytest.raises(UsageError, match="no convention 'sr'; choose from zero-shot"):
        psnr(small, small, convention="sr")
