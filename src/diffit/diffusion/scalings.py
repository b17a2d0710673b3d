"""The table of formulations: how a network's prediction becomes the clean image.

D = skip * x + out * F(inp * x, time), where x = clean + sigma * noise; s is sigma, d sigma_data.

| row       | skip        | out             | inp             | time     | F learns            |
|-----------|-------------|-----------------|-----------------|----------|---------------------|
| ddpm, eps | 1           | -s              | 1/sqrt(1+s^2)   | index    | noise               |
| ddpm, v   | 1/(1+s^2)   | -s/sqrt(1+s^2)  | 1/sqrt(1+s^2)   | index    | v                   |
| vp        | 1           | -s              | 1/sqrt(1+s^2)   | 999 t    | noise               |
| subvp     | 1           | -s              | 2/(s+sqrt(s^2+4)) | 999 t  | noise               |
| ve        | 1           | s               | 1               | ln(s/2)  | -noise              |
| edm       | d^2/(s^2+d^2) | s d/sqrt(s^2+d^2) | 1/sqrt(s^2+d^2) | ln(s)/4 | (clean - skip x)/out |
| flow      | 1/(1+s)     | -s/(1+s)        | 1/(1+s)         | t        | noise - clean       |
| ir-sde    | 1           | -s              | 1/sqrt(1+(s/l)^2) | index1 | noise               |

IR-SDE's network sees inp * x + (1 - inp) * image, centred on the degraded image; l is the standard
deviation of its noise. The rows resshift and indi (`diffit.diffusion.bridge`) have no such x: their
state is x_t, their level the time t, and F learns the clean image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffit.diffusion.laws import Law


class Scalings(NamedTuple):
    """D(x, sigma) = skip * x + out * F(inp * x, noise); four tensors shaped like sigma."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    noise: Tensor


Coefficients = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""sigma to (skip, out, inp)."""


def over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A () or (B,) coefficient in the dtype of x, shaped so that it multiplies (B, ...) x."""
    coefficient = coefficient.to(x.dtype)
    if coefficient.ndim == 0 and coefficient.device.type == "cpu":
        return coefficient  # enters a kernel as a number: no copy to the device, no wait
    return coefficient.to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def predicts_noise(law: Law, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(skip, out, inp) of a network that sees x_t = a x and predicts the noise."""
    return torch.ones_like(sigma), -sigma, law.signal(sigma)


def predicts_v(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(skip, out, inp) of v-prediction (arXiv:2202.00512)."""
    signal = (1 + sigma**2).rsqrt()
    return signal**2, -sigma * signal, signal


def predicts_score(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(skip, out, inp) of a network that sees x and predicts sigma * score = -noise."""
    return torch.ones_like(sigma), sigma, torch.ones_like(sigma)


def preconditioned(sigma: Tensor, *, data: float) -> tuple[Tensor, Tensor, Tensor]:
    """(skip, out, inp) of EDM (arXiv:2206.00364, Table 1); ``data`` is sigma_data."""
    inp = (sigma**2 + data**2).rsqrt()
    return (data * inp) ** 2, sigma * data * inp, inp


def predicts_clean(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(skip, out, inp) of a network that sees its method's state and predicts the clean image."""
    return torch.zeros_like(sigma), torch.ones_like(sigma), torch.ones_like(sigma)


def predicts_velocity(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(skip, out, inp) of a network that sees x_t = (1 - t) x and predicts noise - clean."""
    signal = 1 / (1 + sigma)
    return signal, -sigma * signal, signal
