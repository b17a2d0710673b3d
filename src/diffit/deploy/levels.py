"""What a scheduler of diffusers calls its state, in this library's coordinate.

A scheduler's sample is signal * x, x = clean + sigma * noise. The kinds differ in how they tell the
two: schedulers of DDPM by a table of alpha-bar, those of score matching by sigma itself (signal 1),
those of flow matching by t (signal 1 - t, sigma t / (1 - t)).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffit.diffusion.formulation import Formulation
from diffit.errors import UsageError

TABLE = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler",
         "PNDMScheduler")  # fmt: skip
"""Their steps are indices of a table of alpha-bar."""

PRESERVING = ("DEISMultistepScheduler", "DPMSolverMultistepScheduler",
              "DPMSolverSinglestepScheduler", "SASolverScheduler",
              "UniPCMultistepScheduler")  # fmt: skip
"""They know sigma, and hold samples of unit variance."""

EXPLODING = ("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
             "HeunDiscreteScheduler", "LMSDiscreteScheduler")  # fmt: skip
"""They know sigma, and hold x itself."""

EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
"""As `EXPLODING`, but they want the output of an EDM network."""

FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""They know t."""

PREDICTIONS = {
    "table": ("epsilon", "sample", "v_prediction"),
    "preserving": ("epsilon", "sample", "v_prediction"),
    "exploding": ("epsilon", "v_prediction"),
    "edm": ("epsilon", "v_prediction"),
    "flow": ("flow_prediction",),
}
"""What a network may be said to predict, by kind of scheduler."""

FITTING = (*TABLE, *PRESERVING, *EXPLODING, *EDM, *FLOW)
TOLERANCE = 1.05
"""A level may lie so far above those of training: methods round differently at the end."""


class Level(NamedTuple):
    """Where a scheduler's sample stands."""

    signal: float
    """The sample is signal * (clean + sigma * noise)."""
    sigma: float


def check_scheduler(scheduler: Any, formulation: Formulation) -> None:
    """UsageError, by name, for a scheduler that cannot draw from a model of this formulation."""
    name, config = type(scheduler).__name__, scheduler.config
    if name not in FITTING:
        raise UsageError(f"{name} is not among the schedulers that fit: {', '.join(FITTING)}")
    flow = kind_of(scheduler) == "flow"
    if flow and formulation.name != "flow":
        raise UsageError(
            f"{name} walks the straight paths of flow matching, but this model is "
            f"{formulation.name}; take {suggestion(formulation)}"
        )
    predicts = config.get("prediction_type", "flow_prediction")
    fitting = PREDICTIONS[kind_of(scheduler)]
    if predicts not in fitting:
        raise UsageError(
            f"{name} has prediction_type {predicts!r}; it must be {' or '.join(fitting)}"
        )
    learned = str(config.get("variance_type") or "").startswith("learned")
    if learned and config.variance_type != "learned_range":
        raise UsageError(
            f"{name} has variance_type {config.variance_type!r}; the networks of this library "
            "learn 'learned_range'"
        )
    if learned and not formulation.learned_variance:
        raise UsageError(
            f"{name} has variance_type 'learned_range', but this model has learned no variance; "
            "take 'fixed_small'"
        )


def check_levels(levels: list[Level], scheduler: Any, formulation: Formulation) -> None:
    """UsageError if a scheduler goes where the network was never trained."""
    highest = max(level.sigma for level in levels)
    if highest > TOLERANCE * formulation.sigma_max:
        raise UsageError(
            f"{type(scheduler).__name__} goes up to noise level {highest:.4g}, but this model "
            f"({formulation.name}) was trained up to {formulation.sigma_max:.4g}; take "
            f"{suggestion(formulation)}"
        )


def kind_of(scheduler: Any) -> str:
    """table, preserving, exploding, edm or flow."""
    name, config = type(scheduler).__name__, scheduler.config
    if name in FLOW or config.get("use_flow_sigmas"):
        return "flow"
    groups = {"table": TABLE, "preserving": PRESERVING, "exploding": EXPLODING, "edm": EDM}
    return next(kind for kind, names in groups.items() if name in names)


def levels_of(scheduler: Any, formulation: Formulation) -> list[Level]:
    """The level of each of the scheduler's time steps, in the order of its walk."""
    kind = kind_of(scheduler)
    steps = len(scheduler.timesteps)
    if kind == "table":
        return _in_table(scheduler)
    sigmas = torch.as_tensor(scheduler.sigmas)[:steps].double()
    if kind == "flow":
        # At t = 1 sigma would be infinite; there the sample is noise as it is at the last level.
        t = sigmas.clamp(max=formulation.sigma_max / (1 + formulation.sigma_max))
        return [Level(1 - v, v / (1 - v)) for v in t.tolist()]
    if kind == "preserving":
        return [Level((1 + s**2) ** -0.5, s) for s in sigmas.tolist()]
    return [Level(1.0, s) for s in sigmas.tolist()]


def prediction(scheduler: Any, clean: Tensor, sample: Tensor, level: Level) -> Tensor:
    """What the scheduler wants a network to say, given the clean image at a level."""
    signal, sigma = level
    noise: Tensor = (sample / signal - clean) / sigma
    if kind_of(scheduler) == "edm":
        return _edm_output(scheduler.config, clean, sample, sigma)
    match scheduler.config.get("prediction_type", "flow_prediction"):
        case "flow_prediction":
            return noise - clean
        case "epsilon":
            return noise
        case "sample":
            return clean
        case _:
            v: Tensor = (noise - sigma * clean) / (1 + sigma**2) ** 0.5
            return v


def suggestion(formulation: Formulation) -> str:
    """A scheduler that fits, for messages."""
    names = {"flow": FLOW[0], "ddpm": TABLE[0], "vp": TABLE[0]}
    return names.get(formulation.name, EDM[0])


def default_scheduler(formulation: Formulation) -> Any:
    """A scheduler of diffusers that walks this model's own levels.

    DDIM keeps its integer stride, our level list `ddim`: with other spacings diffusers' steps do
    not end where the next one starts.
    """
    from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    if formulation.name == "flow":
        return FlowMatchEulerDiscreteScheduler()
    if formulation.name in ("ddpm", "vp") and formulation.betas is not None:
        return DDIMScheduler(
            num_train_timesteps=len(formulation.betas),
            trained_betas=formulation.betas.tolist(),
            clip_sample=False,
            set_alpha_to_one=True,
        )
    return EDMEulerScheduler(
        sigma_min=formulation.sigma_min, sigma_max=formulation.sigma_max, prediction_type="epsilon"
    )


def _in_table(scheduler: Any) -> list[Level]:
    # In float64, where 1 - alpha-bar keeps its digits at the lowest levels.
    alpha_bar = torch.cumprod(1 - scheduler.betas.double(), 0)
    chosen = alpha_bar[torch.as_tensor(scheduler.timesteps).long().cpu()]
    return [Level(a**0.5, (1 / a - 1) ** 0.5 if a > 0 else float("inf")) for a in chosen.tolist()]


def _edm_output(config: Mapping[str, Any], clean: Tensor, sample: Tensor, sigma: float) -> Tensor:
    """F of D = skip x + out F (arXiv:2206.00364, Eq. 7), for the scheduler's own sigma_data."""
    data = config["sigma_data"]
    skip = data**2 / (sigma**2 + data**2)
    out = sigma * data / (sigma**2 + data**2) ** 0.5
    sign = -1 if config["prediction_type"] == "v_prediction" else 1
    output: Tensor = (clean - skip * sample) / (sign * out)
    return output
