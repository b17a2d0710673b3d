"""Lists of noise levels to sample along: Karras, uniform in t, log-uniform, respaced, flow."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffit.config import nearest
from diffit.diffusion.formulation import Formulation
from diffit.errors import UsageError


def levels(
    kind: str, steps: int, formulation: Formulation, *, to_zero: bool = True, **options: Any
) -> Tensor:
    """A list of ``steps`` noise levels and a final 0.

    Args:
        kind: key of `LEVELS`.
        steps: how many levels above 0.
        formulation: gives the ends of the list, unless ``low`` and ``high`` do.
        to_zero: end with 0; else with the lowest level, one more of the list's own.
        options: keyword options of the list's function; None stands for its default.

    Returns:
        (steps + 1,) float64, decreasing, on the CPU; the last is 0, or the lowest level.

    Raises:
        UsageError: unknown kind or option, or a list that this formulation cannot have.
    """
    if kind not in LEVELS:
        raise UsageError(f"there is no level list {kind!r}; {nearest(kind, list(LEVELS))}")
    if steps < 1:
        raise UsageError(f"steps is {steps}; sampling needs at least 1")
    make, known = LEVELS[kind]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            raise UsageError(
                f"level list {kind!r} has no option {name!r}; it knows {', '.join(known) or 'none'}"
            )
    if not to_zero:
        return make(steps + 1, formulation, **given)
    sigmas = make(steps, formulation, **given)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def karras(
    steps: int,
    formulation: Formulation,
    *,
    low: float | None = None,
    high: float | None = None,
    rho: float = 7.0,
) -> Tensor:
    """Evenly spaced in sigma^(1 / rho) (arXiv:2206.00364, Eq. 5)."""
    if rho <= 0:
        raise UsageError(f"rho is {rho:g}; it must be above 0, 7 is usual")
    bottom, top = _ends(formulation, low, high)
    return torch.lerp(top ** (1 / rho), bottom ** (1 / rho), _grid(steps)) ** rho


def log_uniform(
    steps: int, formulation: Formulation, *, low: float | None = None, high: float | None = None
) -> Tensor:
    """A geometric series, as the variance-exploding SDE and DPM-Solver take it."""
    bottom, top = _ends(formulation, low, high)
    return torch.lerp(top.log(), bottom.log(), _grid(steps)).exp()


def uniform(
    steps: int, formulation: Formulation, *, low: float | None = None, high: float | None = None
) -> Tensor:
    """Evenly spaced in the formulation's own time."""
    bottom, top = _ends(formulation, low, high)
    law = formulation.law
    return law.sigma(torch.lerp(law.t(top), law.t(bottom), _grid(steps)))


def flow(
    steps: int, formulation: Formulation, *, high: float | None = None, shift: float = 1.0
) -> Tensor:
    """t evenly spaced down to 0, sigma = shift * t / (1 - t) (arXiv:2403.03206, Eq. 23).

    A shift above 1 spends more steps on high noise; SD3 takes 3 for images of 1024 pixels.
    """
    if shift <= 0:
        raise UsageError(f"shift is {shift:g}; it must be above 0, 1 changes nothing")
    _, top = _ends(formulation, None, high)
    # The list starts at the highest level whatever the shift.
    first = (top / shift) / (1 + top / shift)
    t = first * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    return shift * t / (1 - t)


def respaced(steps: int, formulation: Formulation, *, sections: str | None = None) -> Tensor:
    """Some of the levels the network was trained on, evenly spaced with both ends.

    ``sections`` such as "10,15,25" divides the training levels into equal sections and takes so
    many of each; "ddim25" takes 25 at an integer stride.
    """
    all_levels = _discrete(formulation)
    if steps < 2:
        # The published rule would take the lowest level alone, where there is nothing to denoise.
        raise UsageError("steps is 1; respaced levels need at least 2")
    kept = respace(sections or str(steps), len(all_levels))
    if len(kept) != steps:
        raise UsageError(f"sections {sections!r} make {len(kept)} steps, but steps is {steps}")
    return all_levels[kept].flip(0)


def strided(steps: int, formulation: Formulation) -> Tensor:
    """Some of the levels the network was trained on, at an integer stride from the lowest."""
    all_levels = _discrete(formulation)
    return all_levels[respace(f"ddim{steps}", len(all_levels))].flip(0)


def respace(text: str, total: int) -> list[int]:
    """Increasing indices out of 0 .. total - 1: "250", "10,15,25" in equal sections, or "ddim25".

    The rule is that of the published Gaussian diffusion code, so that its sample counts mean the
    same steps here.
    """
    if text.startswith("ddim"):
        return _stride(_whole(text.removeprefix("ddim"), text), total)
    counts = [_whole(part, text) for part in text.split(",")]
    kept: list[int] = []
    for section, count in enumerate(counts):
        # The first sections take what an equal division leaves over.
        share, rest = divmod(total, len(counts))
        size = share + (section < rest)
        start = section * share + min(section, rest)
        if count > size:
            raise UsageError(f"{text!r} takes {count} steps out of a section of {size}")
        gap = (size - 1) / (count - 1) if count > 1 else 0.0
        # The gap is added up, not multiplied: near a half the two may round differently.
        places = itertools.accumulate([0.0, *[gap] * (count - 1)])
        kept += [start + round(place) for place in places]
    return kept


LEVELS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "karras": (karras, ("low", "high", "rho")),
    "uniform": (uniform, ("low", "high")),
    "log-uniform": (log_uniform, ("low", "high")),
    "respaced": (respaced, ("sections",)),
    "ddim": (strided, ()),
    "flow": (flow, ("high", "shift")),
}
"""Name of a level list: its function and the options that it knows."""


def _grid(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def _ends(formulation: Formulation, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
    bottom = formulation.sigma_min if low is None else low
    top = formulation.sigma_max if high is None else high
    if not 0 < bottom < top < float("inf"):
        raise UsageError(f"levels from {top:g} down to {bottom:g}: it must be 0 < low < high")
    return torch.tensor(bottom, dtype=torch.float64), torch.tensor(top, dtype=torch.float64)


def _discrete(formulation: Formulation) -> Tensor:
    if formulation.levels is None:
        raise UsageError(
            f"formulation {formulation.name!r} has no discrete levels to choose from; "
            f"take the level list {formulation.natural!r}"
        )
    return formulation.levels


def _stride(count: int, total: int) -> list[int]:
    for stride in range(1, total):
        if len(range(0, total, stride)) == count:
            return list(range(0, total, stride))
    raise UsageError(f"no integer stride takes exactly {count} of {total} steps")


def _whole(part: str, text: str) -> int:
    if not part.strip().isdecimal() or int(part) < 1:
        raise UsageError(f"{text!r} is no respacing; write '250', '10,15,25' or 'ddim25'")
    return int(part)
