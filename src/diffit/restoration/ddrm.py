"""DDRM: a variational posterior along each singular direction of the operator.

Kawar et al., Denoising Diffusion Restoration Models (arXiv:2201.11793), Eq. 4 to 8. As in the
released code a direction that lies on the border between two cases is treated as not measured.
"""

from itertools import pairwise

import torch
from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.restoration.method import Noise, Restoration, pseudo_inverse, restoration
from diffit.restoration.operators import SpectralOperator


def ddrm(
    denoise: Denoise,
    y: Tensor,
    operator: SpectralOperator,
    sigmas: Tensor,
    *,
    noise: Noise,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    eta: float = 0.85,
    eta_b: float = 1.0,
    project_last: bool = True,
) -> Restoration:
    """Images that agree with y in few steps.

    Args:
        denoise: (x, sigma) to the clean image.
        y: (B, *measured).
        operator: with its singular value decomposition.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw.
        sigma_y: standard deviation of the noise of y.
        x: the start; by default the paper's, y where it tells more than the noise of the level.
        eta: how much of the noise is drawn anew where y tells nothing, or less than the level.
        eta_b: trust in y where it tells more than the level.
        project_last: put y into the result where it has no noise; the released code does not.
    """
    s = operator.singulars.to(y)
    known = torch.where(s > 0, operator.ut(y) / s.clamp(min=1e-300), 0.0)
    error = torch.where(s > 0, sigma_y / s.clamp(min=1e-300), torch.inf)
    if x is None:
        drawn = operator.vt(noise())
        inside = error < sigmas[0]
        room = (sigmas[0] ** 2 - error**2).clamp(min=0).sqrt()
        x = operator.v(torch.where(inside, known + room * drawn, sigmas[0] * drawn))
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        z, along = operator.vt(noise()), operator.vt((x - clean) / sigma)
        mean = operator.vt(clean)
        keep = (1 - eta**2) ** 0.5
        free = mean + lower * (keep * along + eta * z)
        gap = torch.where(s > 0, (known - mean) / error.clamp(min=1e-300), 0.0)
        noisy = mean + lower * (keep * gap + eta * z)
        room = (lower**2 - eta_b**2 * error**2).clamp(min=0).sqrt()
        clear = (1 - eta_b) * mean + eta_b * known + room * z
        moved = torch.where((s > 0) & (error > lower), noisy, free)
        x = operator.v(torch.where((s > 0) & (error < lower), clear, moved))
    if project_last and sigma_y == 0:
        x = pseudo_inverse(operator, y, x)
    return restoration(x, len(sigmas) - 1, operator, y)
