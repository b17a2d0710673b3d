"""Fidelity of restored images: PSNR and SSIM, under conventions that have names.

Two numbers can be compared only if borders, channels, range and rounding agree, and fields differ
in all four. Images are (B, C, H, W), uint8 or floats in [0, 1]; results are (B,) float64, one for
each image: papers average these, not the errors.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffit.errors import DataError, UsageError

WINDOW, DEVIATION = 11, 1.5
"""Side and standard deviation, in pixels, of the Gaussian window of SSIM."""


class Convention(NamedTuple):
    """How images are made comparable.

    Attributes:
        crop: pixels cut off each border; "factor" is that of the super-resolution.
        channel: all of RGB, or the luma Y of BT.601 in studio swing.
        range: value of white: 1 for floats, 255 for rounded values.
        rounding: whether values are rounded to whole levels of 0..255 first.
    """

    crop: int | Literal["factor"]
    channel: Literal["rgb", "y"]
    range: float
    rounding: bool


CONVENTIONS: dict[str, Convention] = {
    "zero-shot": Convention(0, "rgb", 1.0, False),
    "super-resolution": Convention("factor", "y", 255.0, True),
    "real-super-resolution": Convention("factor", "rgb", 255.0, True),
    "deblur": Convention(0, "rgb", 255.0, True),
    "lowlight": Convention(0, "rgb", 255.0, True),
    "dehaze": Convention(0, "rgb", 255.0, True),
    "derain": Convention(0, "y", 255.0, True),
}
"""Name to convention: zero-shot papers (clipped floats), Set5 and its like, DIV2K's RGB, GoPro,
LOL (never with the brightness aligned), RESIDE, Rain100."""


def psnr(a: Tensor, b: Tensor, *, convention: str = "zero-shot", factor: int = 1) -> Tensor:
    """10 log10(R^2 / MSE) of each image in dB; infinite for equal ones."""
    x, y, white = prepared(a, b, convention, factor)
    return 10 * torch.log10(white**2 / (x - y).square().flatten(1).mean(1))


def ssim(a: Tensor, b: Tensor, *, convention: str = "zero-shot", factor: int = 1) -> Tensor:
    """Structural similarity of each image (Wang et al., IEEE TIP 2004), mean over channels.

    Gaussian 11 x 11 window, population covariance, where the window lies inside the image.
    """
    x, y, white = prepared(a, b, convention, factor)
    if min(x.shape[2:]) < WINDOW:
        raise DataError(
            f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, these have "
            f"{x.shape[2]} x {x.shape[3]}; take PSNR alone"
        )
    whole, _ = similarity(x, y, white, gaussian_window(x))
    return whole.flatten(1).mean(1)


def similarity(
    x: Tensor, y: Tensor, white: float, window: Tensor, *, unbiased: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Maps of SSIM and of its contrast and structure alone, where the window lies inside.

    Args:
        x, y: (B, C, H, W) float64.
        white: value of white.
        window: (N,) weights of each side, which sum to 1.
        unbiased: factor of the covariances, N^2 / (N^2 - 1) for those of a sample.
    """
    c1, c2 = (0.01 * white) ** 2, (0.03 * white) ** 2
    mx, my = smoothed(x, window), smoothed(y, window)
    xx = (smoothed(x * x, window) - mx**2) * unbiased
    yy = (smoothed(y * y, window) - my**2) * unbiased
    xy = (smoothed(x * y, window) - mx * my) * unbiased
    contrast = (2 * xy + c2) / (xx + yy + c2)
    return (2 * mx * my + c1) / (mx**2 + my**2 + c1) * contrast, contrast


def find_convention(name: str) -> Convention:
    """The convention called ``name``; UsageError if there is none."""
    if name not in CONVENTIONS:
        raise UsageError(f"there is no convention {name!r}; choose from {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def luma(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, 1, H, W), 16 to 235: BT.601, studio swing, not rounded."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=rgb.device)
    return 16 + (rgb * weights.view(3, 1, 1)).sum(1, keepdim=True)


def prepared(a: Tensor, b: Tensor, name: str, factor: int) -> tuple[Tensor, Tensor, float]:
    """Two batches as a convention wants them compared, float64, and the value of white."""
    rule = find_convention(name)
    if a.shape != b.shape or a.ndim != 4:
        raise DataError(
            f"images of shape {tuple(a.shape)} and {tuple(b.shape)} cannot be compared; both must "
            "be (B, C, H, W)"
        )
    crop = factor if rule.crop == "factor" else rule.crop
    x, y = (_one(image, rule, crop) for image in (a, b))
    return x, y, rule.range


def _one(image: Tensor, rule: Convention, crop: int) -> Tensor:
    value = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    if not value.isfinite().all():
        raise DataError("the images hold values that are not finite")
    if rule.rounding:
        value = (value * 255).round() / 255
    value = value.clamp(0, 1)
    value = value[..., crop : value.shape[-2] - crop, crop : value.shape[-1] - crop]
    if 0 in value.shape:
        raise DataError(f"cutting {crop} pixels off each border leaves nothing of these images")
    if rule.channel == "y" and value.shape[1] == 3:
        return luma(value) * (rule.range / 255)
    return value * rule.range


def gaussian_window(x: Tensor) -> Tensor:
    """(11,) weights of the Gaussian window, on the device of ``x``."""
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    line = (-0.5 * (place / DEVIATION) ** 2).exp()
    return line / line.sum()


def smoothed(x: Tensor, window: Tensor) -> Tensor:
    """Averages of (B, C, H, W) weighted by a window in both directions, inside the image."""
    line = window.expand(x.shape[1], 1, 1, len(window))
    across = F.conv2d(x, line, groups=x.shape[1])
    return F.conv2d(across, line.transpose(2, 3), groups=x.shape[1])
