"""Samplers: functions that walk x down a list of noise levels, and the table of their names."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from diffit.config import nearest
from diffit.diffusion.formulation import Formulation
from diffit.errors import UsageError
from diffit.samplers.ddpm import ancestral, ancestral_learned, ddim
from diffit.samplers.heun import euler, heun
from diffit.samplers.langevin import annealed_langevin, named_predictor_corrector
from diffit.samplers.multistep import dpmpp_multistep, dpmpp_multistep_sde
from diffit.samplers.noise import ImageNoise
from diffit.samplers.singlestep import dpmpp_singlestep
from diffit.samplers.unipc import unipc

__all__ = ["SAMPLERS", "ImageNoise", "Sampler", "find_sampler"]


@dataclass(frozen=True)
class Sampler:
    """A row of the table.

    Attributes:
        run: (denoise, x, sigmas, *, noise, ...) to x at the last level.
        about: one line for help texts.
        curve: level list that suits an ODE solver of this kind; None takes the formulation's own.
        options: keywords of ``run`` that a user may set.
        wants_estimate: ``run`` takes an `Estimator` in place of a `Denoise`.
        cost: evaluations for each step to a level above 0.
        last: evaluations of the final step to 0.
        above: evaluations of a final step to a level above 0; ``cost`` unless given.
        stochastic: draws noise after the start.
    """

    run: Callable[..., Tensor]
    about: str
    curve: str | None = None
    options: tuple[str, ...] = ()
    wants_estimate: bool = False
    cost: int = 1
    last: int = 1
    above: int | None = None
    stochastic: bool = False

    def levels(self, formulation: Formulation) -> str:
        """Name of the level list to take unless the user asks for another."""
        # Straight paths are straight in t, whatever the solver.
        if self.curve is None or formulation.natural == "flow":
            return formulation.natural
        return self.curve

    def evaluations(self, steps: int, *, to_zero: bool = True) -> int:
        """How often the (guided) denoiser is called for ``steps`` steps, the last one to 0."""
        above = self.cost if self.above is None else self.above
        return self.cost * (steps - 1) + (self.last if to_zero else above)

    def check_options(self, name: str, options: Iterable[str]) -> None:
        """UsageError if one of ``options`` is none of this sampler, called ``name``."""
        for option in options:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise UsageError(f"sampler {name!r} has no option {option!r}; it knows {known}")


SAMPLERS: dict[str, Sampler] = {
    "ancestral": Sampler(
        ancestral, "DDPM: draws each level anew", options=("variance",), stochastic=True
    ),
    "ancestral-learned": Sampler(
        ancestral_learned, "DDPM with the learned variance", wants_estimate=True, stochastic=True
    ),
    "ddim": Sampler(ddim, "DDIM; eta 0 is deterministic, 1 ancestral", options=("eta",)),
    "euler": Sampler(euler, "the flow in first order", "karras"),
    "heun": Sampler(
        heun,
        "EDM: the flow in second order, with optional churn",
        "karras",
        options=("churn", "churn_min", "churn_max", "churn_noise"),
        cost=2,
    ),
    "dpmpp-1": Sampler(partial(dpmpp_multistep, order=1), "DPM-Solver++, first order", "karras"),
    "dpmpp-2m": Sampler(partial(dpmpp_multistep, order=2), "DPM-Solver++(2M)", "karras"),
    "dpmpp-3m": Sampler(partial(dpmpp_multistep, order=3), "DPM-Solver++(3M)", "karras"),
    "dpmpp-2s": Sampler(partial(dpmpp_singlestep, order=2), "DPM-Solver++(2S)", "karras"),
    "dpmpp-3s": Sampler(
        partial(dpmpp_singlestep, order=3), "DPM-Solver++(3S), DPM-Solver-fast", "karras"
    ),
    "dpmpp-2m-sde": Sampler(
        partial(dpmpp_multistep_sde, order=2), "DPM-Solver++(2M) with noise", "karras",
        stochastic=True,
    ),
    "dpmpp-3m-sde": Sampler(
        partial(dpmpp_multistep_sde, order=3), "DPM-Solver++(3M) with noise", "karras",
        stochastic=True,
    ),
    "unipc": Sampler(unipc, "UniPC: predicts, then corrects", "karras", ("order", "variant")),
    "pc": Sampler(
        named_predictor_corrector,
        "predictor-corrector of the score SDE",
        options=("corrections", "snr", "predictor", "corrector"),
        cost=2,
        last=2,
        stochastic=True,
    ),
    "ncsn": Sampler(
        annealed_langevin,
        "annealed Langevin dynamics; hundreds of levels",
        "log-uniform",
        options=("corrections",),
        cost=5,
        last=6,
        above=10,
        stochastic=True,
    ),
}  # fmt: skip
"""Name on the command line: the sampler."""


def find_sampler(name: str) -> Sampler:
    """The sampler of that name; UsageError names the nearest one."""
    if name not in SAMPLERS:
        raise UsageError(f"there is no sampler {name!r}; {nearest(name, list(SAMPLERS))}")
    return SAMPLERS[name]
