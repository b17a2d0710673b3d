"""Structural similarity in the forms of other papers: a uniform window, and several scales.

Arguments and refusals as in `diffit.evaluation.images`, whose `ssim` has the Gaussian window.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diffit.errors import DataError
from diffit.evaluation.images import WINDOW, gaussian_window, prepared, similarity

UNIFORM = 7
"""Side of scikit-image's default window."""
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's scales, finest first (Wang et al., Asilomar 2003)."""


def ssim_uniform(a: Tensor, b: Tensor, *, convention: str = "zero-shot", factor: int = 1) -> Tensor:
    """SSIM with a uniform 7 x 7 window and sample covariance, scikit-image's default: (B,)."""
    x, y, white = prepared(a, b, convention, factor)
    _check_side(x, UNIFORM, "SSIM with the uniform window")
    window = torch.full((UNIFORM,), 1 / UNIFORM, dtype=x.dtype, device=x.device)
    count = UNIFORM**2
    whole, _ = similarity(x, y, white, window, unbiased=count / (count - 1))
    return whole.flatten(1).mean(1)


def ms_ssim(a: Tensor, b: Tensor, *, convention: str = "zero-shot", factor: int = 1) -> Tensor:
    """Multi-scale SSIM of each image, (B,): five scales, each half the size of the last.

    The product over scales of the mean contrast and structure, at the coarsest of the mean SSIM,
    for each channel; negative means count as 0.
    """
    x, y, white = prepared(a, b, convention, factor)
    _check_side(x, WINDOW * 2 ** (len(SCALES) - 1), "MS-SSIM")
    window = gaussian_window(x)
    product = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    for place, exponent in enumerate(SCALES):
        whole, contrast = similarity(x, y, white, window)
        last = place == len(SCALES) - 1
        mean = (whole if last else contrast).flatten(2).mean(2)
        product = product * mean.clamp(min=0) ** exponent
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product.mean(1)


def _check_side(x: Tensor, least: int, name: str) -> None:
    if min(x.shape[2:]) < least:
        raise DataError(
            f"{name} needs images of at least {least} x {least} pixels, these have "
            f"{x.shape[2]} x {x.shape[3]}; take PSNR, or SSIM from {WINDOW} x {WINDOW} on"
        )
