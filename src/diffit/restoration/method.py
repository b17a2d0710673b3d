"""What a restoration method is: the contract, and which problems a method fits.

A method is a function ``method(denoise, y, operator, sigmas, *, noise, sigma_y=0.0, x=None, ...)``
that returns a `Restoration`. It works in the library's one coordinate, x = clean + sigma * noise,
and makes its own start unless ``x`` is given. The published forms are in x_t = x * sqrt(alpha-bar),
with sigma = sqrt(1 / alpha-bar - 1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from diffit.restoration.operators import LinearOperator, Operator

Noise = Callable[[], Tensor]
"""The next (B, C, H, W) unit draw."""


class Restoration(NamedTuple):
    """Restored images and what they cost.

    Attributes:
        x: (B, C, H, W).
        nfe: evaluations of the denoiser.
        consistency: (B,) root mean square of A x - y; None where x is latent or no
            measurement is known.
    """

    x: Tensor
    nfe: int
    consistency: Tensor | None


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    Attributes:
        run: the function.
        about: one line for help texts.
        needs: of the operator and the denoiser: "linear", "spectral", "mask", "gradient".
        options: names of keywords of ``run`` that a user may set, with their defaults.
        steps: noise levels that it was published with.
        levels: name of its level list; None for the formulation's own.
        published: the setting of the paper, for the docs.
    """

    run: Callable[..., Restoration]
    about: str
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 100
    levels: str | None = None
    published: str = ""


def restoration(x: Tensor, nfe: int, operator: Operator, y: Tensor) -> Restoration:
    """A result with its consistency."""
    gap = (operator(x) - y).abs().square().flatten(1).mean(1).sqrt()
    return Restoration(x.detach(), nfe, gap.detach())


def prior_noise(x: Tensor | None, sigma: Tensor, noise: Noise) -> Tensor:
    """The start that is given, or noise alone."""
    return sigma * noise() if x is None else x


def pseudo_inverse(operator: LinearOperator, y: Tensor, clean: Tensor) -> Tensor:
    """Clean images with what was measured put in: x - A+ (A x - y)."""
    return clean - operator.pinv(operator(clean) - y)
