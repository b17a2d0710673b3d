"""Evaluation: distances between samples and a reference, with a passport for every figure.

    passport = evaluate(samples, reference, features=open_features("digits-cnn"))
    passport.value("fd")

Nothing here knows of models: samples are images, from `open_dataset` or, in memory, as
`diffit.data.Arrays`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffit.data import Dataset
from diffit.evaluation.cache import FeatureCache, open_cache
from diffit.evaluation.features import Extractor, open_features
from diffit.evaluation.figures import (
    MANIFOLD,
    METRICS,
    Draws,
    accuracy_figure,
    frechet_figure,
    kid_figure,
    manifold_figures,
    score_figure,
    spatial_figure,
)
from diffit.evaluation.measuring import GROUPS, Measured, Progress, Request, measure_all
from diffit.evaluation.moments import Gaussian
from diffit.evaluation.passport import FeatureInfo, Figure, Images, Passport, versions
from diffit.evaluation.planning import (
    REFERENCE_KEEP,
    EvaluationConfig,
    Plan,
    plan,
    plan_all,
)
from diffit.evaluation.protocols import Statistics

__all__ = [
    "METRICS",
    "EvaluationConfig",
    "Figure",
    "Passport",
    "Plan",
    "Statistics",
    "compare",
    "evaluate",
    "measure_samples",
    "open_cache",
    "open_features",
    "plan",
    "plan_all",
]

FEW = 10_000
"""Fewer samples than this, and the bias of a Frechet distance shows in its first digits."""


def evaluate(
    samples: Dataset,
    reference: Dataset | Statistics,
    *,
    features: Extractor | Sequence[Extractor],
    config: EvaluationConfig | None = None,
    samples_path: str = "",
    reference_path: str = "",
    generation: Mapping[str, Any] | None = None,
    processes: int = 1,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> Passport:
    """Measure samples against a reference; UsageError if that cannot be done as asked.

    Args:
        samples: generated images; their labels serve the accuracy.
        reference: real images of the same shape, or statistics of their features.
        features: what turns images into vectors, from `open_features`; several for several
            protocols, for which the images are read once.
        config: which figures, and how.
        samples_path: where the samples came from, for the passport; likewise ``reference_path``.
        generation: how the samples were drawn, for the passport.
        processes: that compute features.
        cache: where features are kept for another day.
        progress: called after every batch.
    """
    listed = [features] if isinstance(features, Extractor) else list(features)
    plans = plan_all(samples, reference, listed, config or EvaluationConfig())
    ours = measure_samples(
        plans, samples, path=samples_path, processes=processes, cache=cache, progress=progress
    )
    return compare(
        plans,
        ours,
        reference,
        path=reference_path,
        generation=generation or {},
        processes=processes,
        cache=cache,
        progress=progress,
    )


def measure_samples(
    plans: Sequence[Plan],
    samples: Dataset,
    *,
    path: str = "",
    spatial: bool = False,
    processes: int = 1,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> list[Measured]:
    """One pass over the samples, which remembers what the figures and their intervals need.

    ``spatial`` asks for the spatial features even if no figure needs them.
    """
    config = plans[0].config
    return measure_all(
        samples,
        [_of_samples(what, len(samples), spatial) for what in plans],
        path=path,
        batch=config.batch,
        seed=config.seed,
        processes=processes,
        cache=cache,
        name="samples",
        progress=progress,
    )


def _of_samples(what: Plan, count: int, spatial: bool) -> Request:
    config, bootstrap = what.config, what.bootstraps(count)
    return Request(
        what.features,
        keep=config.keep if what.pairs or (config.draws and bootstrap) else 0,
        groups=GROUPS if config.draws and not bootstrap else 1,
        spatial=spatial or "sfd" in what.metrics,
        scores="is" in what.metrics,
    )


def compare(
    plans: Sequence[Plan],
    ours: Sequence[Measured],
    reference: Dataset | Statistics,
    *,
    path: str = "",
    generation: Mapping[str, Any],
    processes: int = 1,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> Passport:
    """The passport of measured samples against a reference, which is measured as far as needed."""
    known = reference if isinstance(reference, Statistics) else None
    images = reference.images if isinstance(reference, Statistics) else reference
    theirs: list[Measured] | list[None] = [None] * len(plans)
    config = plans[0].config
    if images is not None and (known is None or any(what.pairs for what in plans)):
        theirs = measure_all(
            images,
            [
                Request(
                    what.features,
                    keep=min(config.keep, REFERENCE_KEEP) if what.pairs else 0,
                    groups=1,
                    spatial="sfd" in what.metrics and known is None,
                )
                for what in plans
            ],
            path=path,
            batch=config.batch,
            seed=config.seed,
            processes=processes,
            cache=cache,
            name="reference",
            progress=progress,
        )
    sides = list(zip(plans, ours, theirs, strict=True))
    notes = [note for what, mine, other in sides for note in _notes(what, mine, other, known)]
    if len(plans) > 1:
        notes.append("figures of different protocols or features do not compare with each other")
    return Passport(
        figures=tuple(f for what, mine, other in sides for f in _figures(what, mine, other, known)),
        samples=_side(ours[0]),
        reference=_known_side(known) if known else _side(theirs[0]),
        features=tuple(_feature_info(what.features) for what in plans),
        generation=dict(generation),
        seed=config.seed,
        versions=versions(),
        notes=tuple(dict.fromkeys(notes)),
    )


def _figures(
    what: Plan, ours: Measured, theirs: Measured | None, known: Statistics | None
) -> tuple[Figure, ...]:
    config, features = what.config, what.features
    draws = Draws(config.draws, config.seed, config.kid_subset, config.kid_subsets)
    figures = {}
    if "fd" in what.metrics:
        pool, count = _reference_moments(theirs, known)
        figures["fd"] = frechet_figure(ours, pool, count, features, draws)
    if "sfd" in what.metrics:
        spatial, count = _spatial_moments(theirs, known)
        figures["sfd"] = spatial_figure(ours, spatial, count, features)
    if "is" in what.metrics:
        figures["is"] = score_figure(ours, features)
    if what.pairs:
        kept = _needed(ours.kept), _needed(theirs.kept if theirs else None)
        if "kid" in what.metrics:
            figures["kid"] = kid_figure(*kept, features, draws)
        if set(what.metrics) & set(MANIFOLD):
            figures |= manifold_figures(*kept, features, draws)
    if "accuracy" in what.metrics:
        # Classes meet by name: the classifier's numbers need not be the samples'.
        numbers = torch.tensor([features.classes.index(name) for name in ours.classes])
        wanted = numbers[_needed(ours.labels)]
        figures["accuracy"] = accuracy_figure(_needed(ours.predicted), wanted, features, draws)
    return tuple(figures[metric] for metric in what.metrics)


def _spatial_moments(
    theirs: Measured | None, known: Statistics | None
) -> tuple[Gaussian, int | None]:
    if known is not None and known.spatial is not None:
        return known.spatial, known.count
    if theirs is None or theirs.spatial is None:
        raise ValueError("sFID needs the spatial features of the reference")
    return theirs.spatial.gaussian(), theirs.count


def _reference_moments(
    theirs: Measured | None, known: Statistics | None
) -> tuple[Gaussian, int | None]:
    if known is not None:
        return known.pool, known.count
    if theirs is None:
        raise ValueError("a reference is needed: images or statistics")
    return theirs.pool, theirs.count


def _side(side: Measured | None) -> Images:
    if side is None:
        raise ValueError("a reference is needed: images or statistics")
    return Images(path=side.path, kind="images", count=side.count, shape=side.shape, hash=side.hash)


def _known_side(known: Statistics) -> Images:
    return Images(
        path=known.path, kind="statistics", count=known.count, shape=None, hash=known.hash
    )


def _feature_info(features: Extractor) -> FeatureInfo:
    return FeatureInfo(
        name=features.name,
        dims=features.dims,
        hash=features.hash,
        protocol=features.protocol,
        resize=features.resize,
        used=features.used,
    )


def _notes(
    what: Plan, ours: Measured, theirs: Measured | None, known: Statistics | None
) -> list[str]:
    notes = list(what.features.notes)
    if "fd" in what.metrics:
        notes += _frechet_notes(what.features, ours.count, _reference_moments(theirs, known)[1])
    for name, side in (("samples", ours), ("reference images", theirs)):
        if side is not None and side.kept is not None and len(side.kept) < side.count:
            notes.append(
                f"KID and neighbourhoods use {len(side.kept)} random ones of {side.count} {name}"
            )
    if known is not None and not known.features:
        notes.append(
            "the reference statistics do not say which features they are of, nor how images "
            "were resized; only their dimensions fit"
        )
    if theirs is not None and theirs.hash == ours.hash:
        notes.append("samples and reference are the same images")
    return notes


def _frechet_notes(features: Extractor, samples: int, reference: int | None) -> list[str]:
    """What few images do to a Frechet distance."""
    notes = [
        f"{count} {name} are too few for {features.dims} dimensions: their covariance is "
        f"singular, and {features.distance} is far too large"
        for name, count in (("samples", samples), ("reference images", reference))
        if count is not None and count <= features.dims
    ]
    if not notes and samples < FEW:
        notes.append(
            f"{features.distance} of {samples} samples is biased upward; compare it only with "
            "figures from as many"
        )
    return notes


def _needed(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("the pass over the images did not keep what this figure needs")
    return value
