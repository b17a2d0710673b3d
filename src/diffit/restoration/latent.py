"""Latent models: the gradient of DPS goes through the decoder too.

The first of the ways that Rout et al., Solving Linear Inverse Problems Provably via Posterior
Sampling with Latent Diffusion Models (arXiv:2307.00619, Eq. 5), compare.
"""

from collections.abc import Callable

from torch import Tensor

from diffit.diffusion.denoiser import Denoise
from diffit.restoration.dps import dps
from diffit.restoration.method import Noise, Restoration
from diffit.restoration.operators import Operator

Decode = Callable[[Tensor], Tensor]
"""(B, c, h, w) latents to (B, C, H, W) pixels, differentiable."""


class Decoded:
    """What an operator measures of the image that a latent is decoded to.

    Args:
        operator: for images.
        decode: latents to images.
        shape: (c, h, w) of a latent.
    """

    def __init__(self, operator: Operator, decode: Decode, shape: tuple[int, ...]) -> None:
        self.operator, self.decode = operator, decode
        self.shape, self.measured = shape, operator.measured

    def __call__(self, x: Tensor) -> Tensor:
        """(B, c, h, w) to (B, *measured)."""
        return self.operator(self.decode(x).to(x.dtype))


def latent_dps(
    denoise: Denoise,
    y: Tensor,
    operator: Operator,
    sigmas: Tensor,
    *,
    noise: Noise,
    decode: Decode,
    sigma_y: float = 0.0,
    x: Tensor | None = None,
    zeta: float = 0.3,
) -> Restoration:
    """Images, decoded from latents, that nearly agree with y.

    Args:
        denoise: (x, sigma) to the clean latent, differentiable in x.
        y: (B, *measured).
        operator: for images; differentiable, linear or not.
        sigmas: (S + 1,) decreasing to 0.
        noise: the next unit draw, of the shape of latents.
        decode: latents to images.
        sigma_y: not used: the step size stands for the noise.
        x: the start; by default noise alone.
        zeta: step size.
    """
    first = noise()
    seen = Decoded(operator, decode, tuple(first.shape[1:]))
    start = sigmas[0] * first if x is None else x
    found = dps(denoise, y, seen, sigmas, noise=noise, x=start, zeta=zeta, clip=False)
    return found._replace(x=decode(found.x).detach().to(found.x.dtype))
