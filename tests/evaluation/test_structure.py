"""SSIM with a uniform window and over several scales."""

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.errors import DataError
from diffit.evaluation.images import CONVENTIONS, luma, psnr, ssim
from diffit.evaluation.structure import SCALES, ms_ssim, ssim_uniform

RECORDED = load_file(FIXTURES / "restoration_metrics.safetensors")


@pytest.mark.parametrize("number", [0, 1])
def test_uniform_window_is_scikit_images_default(number):
    a, b = (RECORDED[f"pair{number}/{side}"][None] for side in "ab")
    expected = float(RECORDED[f"pair{number}/ssim_uniform7_rgb"])
    assert float(ssim_uniform(a, b)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("crop", [0, 2, 4])
def test_rgb_without_its_border_as_recorded(number, crop):
    a, b = (RECORDED[f"pair{number}/{side}_uint8"][None] for side in "ab")
    for name, measure in (("psnr", psnr), ("ssim", ssim)):
        expected = float(RECORDED[f"pair{number}/{name}255_rgb_crop{crop}"])
        value = float(measure(a, b, convention="real-super-resolution", factor=crop))
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_one_channel_and_luma_as_recorded(number):
    a, b = (RECORDED[f"pair{number}/{side}"][None] for side in "ab")
    expected = float(RECORDED[f"pair{number}/ssim_gauss_gray_ch0"])
    assert float(ssim(a[:, :1], b[:, :1])) == pytest.approx(expected, abs=1e-9)
    recorded = RECORDED[f"pair{number}/a_y_channel"]
    torch.testing.assert_close(luma(a)[0, 0] / 255, recorded, rtol=0, atol=1e-5)


def test_ms_ssim_of_equal_images_is_one_and_falls_with_noise():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 176, 176, generator=generator)
    noise = torch.randn(a.shape, generator=generator)
    assert sum(SCALES) == pytest.approx(1, abs=1e-4)
    assert ms_ssim(a, a).tolist() == pytest.approx([1, 1])
    little, much = (ms_ssim(a, (a + s * noise).clamp(0, 1)) for s in (0.05, 0.2))
    assert ((little < 1) & (little > much) & (much > 0)).all()
    torch.testing.assert_close(ms_ssim(a[:1], a[1:]), ms_ssim(a[1:], a[:1]))


def test_each_convention_compares_images():
    a = torch.rand(1, 3, 32, 32)
    for name in CONVENTIONS:
        assert float(ssim(a, a, convention=name, factor=4)) == pytest.approx(1)


def test_images_too_small_for_a_window_are_refused():
    small = torch.rand(1, 3, 6, 100)
    with pytest.raises(DataError, match="uniform window needs images of at least 7 x 7"):
        ssim_uniform(small, small)
    with pytest.raises(DataError, match="MS-SSIM needs images of at least 176 x 176"):
        ms_ssim(small, small)
