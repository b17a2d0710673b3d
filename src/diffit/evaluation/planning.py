"""What is to be measured: settings, and what stands in the way before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from diffit.config import Settings
from diffit.data import Dataset
from diffit.errors import UsageError
from diffit.evaluation.features import Extractor
from diffit.evaluation.figures import BOOTSTRAP_DIMS, KID_MOST, MANIFOLD, METRICS, Metric
from diffit.evaluation.neighbours import DENSITY_K, PRECISION_K
from diffit.evaluation.protocols import Statistics, check_fits
from diffit.evaluation.scores import SPLITS

REFERENCE_KEEP = 10_000
"""ADM's precision and recall compare 50,000 samples with so many reference images."""
SECOND: tuple[Metric, ...] = ("fd", "kid")
"""Figures of all protocols but the first, unless others are asked for."""
LEAST: dict[Metric, int] = {
    "fd": 2,
    "sfd": 2,
    "is": SPLITS,
    "kid": 2,
    "precision": PRECISION_K + 1,
    "recall": PRECISION_K + 1,
    "density": DENSITY_K + 1,
    "coverage": DENSITY_K + 1,
}
"""Images a side that each figure needs."""


class EvaluationConfig(Settings):
    """What is measured, and how."""

    metrics: tuple[Metric, ...] | None = None
    """Figures to compute; by default all that the samples and the reference allow."""
    keep: int = Field(default=50_000, ge=DENSITY_K + 1)
    """Neighbourhoods use the features of at most so many random images a side, and of 10,000
    reference images; KID of 10,000 a side."""
    kid_subset: int | None = Field(default=None, ge=2)
    """Images in each random subset of KID (1000 is customary); by default all kept images."""
    kid_subsets: int = Field(default=100, ge=1)
    """How many such subsets."""
    draws: int = Field(default=200, ge=0)
    """Bootstrap resamples for the intervals; 0 leaves intervals out."""
    batch: int = Field(default=64, ge=1)
    """Images at once; has no influence on the figures beyond rounding."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap and of random subsets."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.draws == 1:
            raise ValueError("draws is 1; an interval needs 2 or more, and 0 leaves it out")
        if "bpd" in (self.metrics or ()) and len(self.metrics or ()) > 1:
            raise ValueError("bpd is measured alone, without other metrics")
        return self


@dataclass(frozen=True)
class Plan:
    """A measurement that can be done."""

    config: EvaluationConfig
    features: Extractor
    metrics: tuple[Metric, ...]
    """In the order of `METRICS`."""

    @property
    def pairs(self) -> bool:
        """Whether any figure compares single images, so that features must be kept."""
        return bool(set(self.metrics) & {"kid", *MANIFOLD})

    def bootstraps(self, count: int) -> bool:
        """Whether the Frechet distance of ``count`` samples gets its interval by bootstrap.

        It needs the features of all; in many dimensions the jackknife over groups steps in.
        """
        return self.features.dims <= BOOTSTRAP_DIMS and count <= min(self.config.keep, KID_MOST)


def plan_all(
    samples: Dataset,
    reference: Dataset | Statistics,
    features: Sequence[Extractor],
    config: EvaluationConfig,
) -> list[Plan]:
    """One plan for each extractor; UsageError if a figure that was asked for cannot be had.

    The first has all figures that are possible, the others the distances of distributions. Figures
    that are asked for are measured with every extractor that can, and one of them must.
    """
    if len(features) == 1:
        return [plan(samples, reference, features[0], config)]
    if isinstance(reference, Statistics):
        raise UsageError(
            "statistics are of one resizing alone; name images as the --reference, or one "
            "--features and one --protocol"
        )
    plans, refusals = [], []
    spatial: set[tuple[str, str]] = set()
    for place, extractor in enumerate(features):
        possible = [m for m in METRICS if not _obstacle(m, samples, reference, extractor)]
        network = extractor.hash, extractor.rule
        if "sfd" in possible and network in spatial:
            possible.remove("sfd")  # all layers of a network share its spatial features
        spatial.add(network)
        asked = config.metrics or (METRICS if place == 0 else SECOND)
        refusals.append({m for m in asked if m not in possible})
        chosen = tuple(metric for metric in METRICS if metric in asked and metric in possible)
        if chosen:
            own = config.model_copy(update={"metrics": chosen})
            plans.append(plan(samples, reference, extractor, own))
    nowhere = set.intersection(*refusals) if config.metrics or not plans else set()
    for metric in METRICS:
        if metric in nowhere:
            obstacle = _obstacle(metric, samples, reference, features[0])
            raise UsageError(f"{features[0].title(metric)} cannot be measured: {obstacle}")
    return plans


def plan(
    samples: Dataset, reference: Dataset | Statistics, features: Extractor, config: EvaluationConfig
) -> Plan:
    """What will be computed; UsageError if a figure that was asked for cannot be had."""
    known = reference if isinstance(reference, Statistics) else None
    images = reference.images if isinstance(reference, Statistics) else reference
    if known:
        check_fits(known, features)
    if images is not None and images.shape != samples.shape:
        raise UsageError(
            f"the samples are {_shape(samples)}, the reference is {_shape(images)}; bring the "
            "reference to the samples' with --size and --channels"
        )
    if config.metrics is None:
        possible = [m for m in METRICS if not _obstacle(m, samples, images, features, known)]
        chosen: tuple[Metric, ...] = tuple(possible) or METRICS[:1]
    else:
        chosen = tuple(metric for metric in METRICS if metric in config.metrics)
        if not chosen:
            raise UsageError("--metrics names none; choose from " + ", ".join(METRICS))
    for metric in chosen:
        if obstacle := _obstacle(metric, samples, images, features, known):
            raise UsageError(f"{features.title(metric)} cannot be measured: {obstacle}")
    _check_subset(config, chosen, samples, images)
    return Plan(config, features, chosen)


def _obstacle(
    metric: Metric,
    samples: Dataset,
    reference: Dataset | None,
    features: Extractor,
    known: Statistics | None = None,
) -> str:
    """Why a figure cannot be had, empty if it can; ``known`` are statistics of the reference."""
    if metric == "accuracy":
        return _accuracy_obstacle(samples, features)
    if metric == "is" and not features.scores:
        return f"{features.name} gives no scores; the Inception Score needs --features inception"
    if metric == "sfd" and not features.spatial_dims:
        return f"{features.name} has no spatial features; take --features inception"
    least = LEAST[metric]
    if len(samples) < least:
        return f"it needs {least} samples or more, and there are only {len(samples)}"
    if metric == "is":
        return ""
    if metric == "sfd" and known:
        # ADM's example images are too few for a distance that has statistics of its own.
        return "" if known.spatial else "the statistics hold no spatial features (mu_s, sigma_s)"
    if reference is None:
        if metric == "fd":
            return ""
        return "the reference holds statistics alone; name the reference images themselves"
    if len(reference) < least:
        return f"it needs {least} reference images or more, and there are only {len(reference)}"
    return ""


def _accuracy_obstacle(samples: Dataset, features: Extractor) -> str:
    if not features.classes:
        return f"{features.name} names no classes; take --features digits-cnn or patches-cnn"
    if not samples.classes:
        return "the samples have no labels; draw them with labels or put them into class folders"
    strange = [name for name in samples.classes if name not in features.classes]
    if strange:
        return (
            f"the samples' class {strange[0]!r} is none that {features.name} knows: "
            + ", ".join(features.classes)
        )
    return ""


def _check_subset(
    config: EvaluationConfig,
    metrics: tuple[Metric, ...],
    samples: Dataset,
    reference: Dataset | None,
) -> None:
    if config.kid_subset is None or "kid" not in metrics or reference is None:
        return
    fewest = min(len(samples), len(reference), config.keep)
    if config.kid_subset > fewest:
        raise UsageError(
            f"--kid-subset {config.kid_subset} is more than the {fewest} images that KID can "
            "draw from; give a smaller one, more images or a larger --keep"
        )


def _shape(images: Dataset) -> str:
    channels, height, width = images.shape
    return f"{width} x {height} with {channels} channel" + ("s" if channels > 1 else "")
