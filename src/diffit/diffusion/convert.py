"""One estimate, every framework: what a network says of x_t = a clean + s noise, in other words.

Of (clean, noise, v, score, velocity) any one gives the others (arXiv:2011.13456, 2202.00512,
2210.02747). Estimates have the shape (B, ...) of the state; a and s are () or (B,). In this
library's own coordinate, x = x_t / a at sigma = s / a, a is 1.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from diffit.diffusion.scalings import over

Kind = Literal["clean", "noise", "v", "score", "velocity"]
"""The clean image; the noise (eps); v = a noise - s clean; the gradient of the log density of x_t;
the velocity noise - clean of straight paths."""


class State(NamedTuple):
    """A noised image and its coefficients: x = a clean + s noise, a and s above 0."""

    x: Tensor
    a: Tensor
    s: Tensor

    def rescaled(self, a: Tensor) -> "State":
        """The same image where the clean one has the factor a, at the same noise ratio s / a."""
        return State(over(a / self.a, self.x) * self.x, a, a / self.a * self.s)


def convert(estimate: Tensor, state: State, *, given: Kind, wanted: Kind) -> Tensor:
    """What a prediction of one kind says in another; ValueError for a kind that is unknown."""
    for kind in (given, wanted):
        if kind not in _TO_CLEAN:
            raise ValueError(f"there is no prediction {kind!r}; choose from {', '.join(_TO_CLEAN)}")
    if given == wanted:
        return estimate
    x, a, s = state.x, over(state.a, state.x), over(state.s, state.x)
    return _FROM_CLEAN[wanted](_TO_CLEAN[given](estimate, x, a, s), x, a, s)


Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(estimate, x, a, s) to another estimate."""

_TO_CLEAN: dict[str, Formula] = {
    "clean": lambda clean, x, a, s: clean,
    "noise": lambda noise, x, a, s: (x - s * noise) / a,
    "v": lambda v, x, a, s: (a * x - s * v) / (a * a + s * s),
    "score": lambda score, x, a, s: (x + s * s * score) / a,
    "velocity": lambda u, x, a, s: (x - s * u) / (a + s),
}
_FROM_CLEAN: dict[str, Formula] = {
    "clean": lambda clean, x, a, s: clean,
    "noise": lambda clean, x, a, s: (x - a * clean) / s,
    "v": lambda clean, x, a, s: (a * x - (a * a + s * s) * clean) / s,
    "score": lambda clean, x, a, s: (a * clean - x) / (s * s),
    "velocity": lambda clean, x, a, s: (x - (a + s) * clean) / s,
}
