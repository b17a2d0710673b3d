"""How images are drawn, as settings: sampler, noise levels, guidance, precision."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor

from diffit.config import Settings, nearest
from diffit.diffusion.formulation import Formulation
from diffit.diffusion.guidance import Weight, constant, interval, power_cosine, unless_near_one
from diffit.diffusion.schedule import levels
from diffit.samplers import SAMPLERS

OPTIONS = (
    "eta", "variance", "churn", "churn_min", "churn_max", "churn_noise", "order", "variant",
    "corrections", "snr", "predictor", "corrector",
)  # fmt: skip
"""Settings that only some samplers understand; None leaves them to the sampler."""

LEVEL_OPTIONS = {"sigma_min": "low", "sigma_max": "high", "rho": "rho", "shift": "shift",
                 "sections": "sections"}  # fmt: skip
"""Settings that only some level lists understand, and what those call them."""


class SamplingConfig(Settings):
    """How images are drawn. What is left out follows the sampler and the model."""

    sampler: str = "heun"
    """heun, euler, ddim, dpmpp-2m, unipc, ancestral, ...: a name of the table of samplers."""
    steps: int = Field(default=18, gt=0, le=100_000)
    """Steps from noise to image."""
    levels: Literal["karras", "uniform", "log-uniform", "respaced", "ddim", "flow"] | None = None
    """How the noise levels are spaced; by default as suits the sampler and the model."""
    sigma_min: PositiveFloat | None = None
    """Lowest noise level above 0."""
    sigma_max: PositiveFloat | None = None
    """Noise level of the start."""
    rho: PositiveFloat | None = None
    """karras levels: the exponent, usually 7."""
    shift: PositiveFloat | None = None
    """flow levels: above 1 more steps are spent on high noise."""
    sections: str | None = None
    """respaced levels: how many steps of each section, such as 10,15,25."""
    to_zero: bool = True
    """End at noise 0; no ends at the lowest level and keeps its noise, as U-ViT and DiMR do."""

    guidance: NonNegativeFloat = 1.0
    """Weight of the guidance; 1 is none, above 1 pushes towards the class."""
    guidance_schedule: Literal["constant", "power-cosine", "interval"] = "constant"
    """How the weight depends on the noise level."""
    guidance_power: PositiveFloat | None = None
    """power-cosine: the exponent, usually 4; a large one guides late."""
    guidance_low: PositiveFloat | None = None
    """interval: the lowest noise level that is guided."""
    guidance_high: PositiveFloat | None = None
    """interval: the highest noise level that is guided."""
    guidance_channels: PositiveInt | None = None
    """Guide only the first channels; published latent models guide 3 of 4."""

    eta: float | None = Field(default=None, ge=0, le=1)
    """ddim: 0 is deterministic, 1 as ancestral."""
    variance: Literal["small", "large"] | None = None
    """ancestral: which of DDPM's two variances."""
    churn: NonNegativeFloat | None = None
    """heun: how much noise is renewed on the way."""
    churn_min: NonNegativeFloat | None = None
    """heun: the lowest noise level with churn."""
    churn_max: PositiveFloat | None = None
    """heun: the highest noise level with churn."""
    churn_noise: PositiveFloat | None = None
    """heun: standard deviation of the renewed noise, usually 1 to 1.007."""
    order: Literal[1, 2, 3] | None = None
    """unipc: order of the predictor."""
    variant: Literal["bh1", "bh2"] | None = None
    """unipc: which B(h)."""
    corrections: NonNegativeInt | None = None
    """pc, ncsn: Langevin steps at each level."""
    snr: PositiveFloat | None = None
    """pc: signal to noise ratio of a Langevin step."""
    predictor: Literal["reverse-diffusion", "ancestral", "euler-maruyama"] | None = None
    """pc: how a step leads to the next level."""
    corrector: Literal["langevin", "ald"] | None = None
    """pc: whether a Langevin step is measured by the norm of the score, or by the level (ald)."""
    clip: bool = False
    """Keep every estimate of the clean image within [-1, 1]; for pixels alone."""

    guidance_every: int = Field(default=1, ge=1, le=100)
    """Approximate: evaluate the model without its label at every n-th level alone."""
    guidance_skip: float = Field(default=0.0, ge=0, le=1)
    """Approximate: leave guidance out where its weight is no further than this from 1."""
    reuse_every: int = Field(default=1, ge=1, le=100)
    """Approximate: compute the middle blocks in every n-th evaluation alone."""
    reuse_share: float = Field(default=0.5, gt=0, le=1)
    """How much of the blocks `reuse_every` takes for the middle."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 compute matrix products in that precision (autocast)."""
    unit: int = Field(default=8, gt=0, le=65_536)
    """Images computed together: the one batch size that the bytes of an image depend on."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.sampler not in SAMPLERS:
            raise ValueError(
                f"sampler {self.sampler!r} is unknown; {nearest(self.sampler, list(SAMPLERS))}"
            )
        known = SAMPLERS[self.sampler].options
        for name in self.given(OPTIONS):
            if name not in known:
                raise ValueError(
                    f"sampler {self.sampler!r} has no option {name!r}; "
                    f"it knows {', '.join(known) or 'none'}"
                )
        self._check_guidance()
        return self

    @property
    def approximate(self) -> bool:
        """Whether exactness is given up for speed."""
        return self != self.exact()

    def exact(self) -> "SamplingConfig":
        """These settings without approximations."""
        same = {"guidance_every": 1, "guidance_skip": 0.0, "reuse_every": 1}
        return self.model_copy(update=same)

    def given(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of the named settings that are not None."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def changed(self, **changes: Any) -> "SamplingConfig":
        """These settings with some replaced; None leaves one as it is.

        Another sampler takes nothing over that was meant for this one.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        other = changes.get("sampler", self.sampler) != self.sampler
        kept = self.for_any_sampler() if other else self
        return SamplingConfig(**{**kept.model_dump(), **changes})

    def for_any_sampler(self) -> "SamplingConfig":
        """These settings without what only this sampler or its noise levels understand."""
        own = {"levels", "to_zero", *OPTIONS, *LEVEL_OPTIONS}
        return SamplingConfig(**self.model_dump(exclude=own))

    def sigmas(self, formulation: Formulation) -> Tensor:
        """The noise levels, (steps + 1,) float64, decreasing; UsageError if they cannot be."""
        kind = self.levels or SAMPLERS[self.sampler].levels(formulation)
        options = {
            LEVEL_OPTIONS[name]: value for name, value in self.given([*LEVEL_OPTIONS]).items()
        }
        return levels(kind, self.steps, formulation, to_zero=self.to_zero, **options)

    def weight(self, formulation: Formulation) -> Weight:
        """The guidance weight as a function of sigma."""
        weight = self._weight(formulation)
        return unless_near_one(weight, self.guidance_skip) if self.guidance_skip else weight

    def _weight(self, formulation: Formulation) -> Weight:
        match self.guidance_schedule:
            case "power-cosine":
                power = 4.0 if self.guidance_power is None else self.guidance_power
                return power_cosine(self.guidance, power, formulation.progress)
            case "interval":
                high = float("inf") if self.guidance_high is None else self.guidance_high
                return interval(self.guidance, self.guidance_low or 0.0, high)
            case "constant":
                return constant(self.guidance)

    def _check_guidance(self) -> None:
        owners = {"guidance_power": "power-cosine", "guidance_low": "interval",
                  "guidance_high": "interval"}  # fmt: skip
        for name in self.given([*owners]):
            if self.guidance_schedule != owners[name]:
                raise ValueError(f"{name} is for guidance_schedule {owners[name]!r} alone")
        low, high = self.guidance_low or 0.0, self.guidance_high
        if high is not None and not low < high:
            raise ValueError(f"guidance_high ({high:g}) must be above guidance_low ({low:g})")
