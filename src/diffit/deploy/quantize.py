"""A trained model with integer or packed layers: which of them, and what that changes."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from diffit.deploy.probe import Gap, Probe, answers, gaps, overall
from diffit.deploy.sensitivity import Layers, keep_dense
from diffit.errors import CheckpointError, UsageError
from diffit.model import Model
from diffit.nn.packed import TernaryPackedConfig
from diffit.nn.quantized import Int4Config, Int8Config
from diffit.nn.swap import linears_in
from diffit.nn.ternary import TernaryConfig, TernaryLinear

QuantisedConfig = Int8Config | Int4Config | TernaryPackedConfig
"""The settings of layers that a trained model can be given."""

DENSE = "dense"
TRIES = 8
"""How often the choice of layers is corrected by what was measured."""


class Layer(NamedTuple):
    """What became of one linear layer of the blocks."""

    name: str
    weights: int
    kind: str
    """dense, or the kind of integer or packed weights."""
    error: float | None
    """Relative error of the network's output that it would cause alone; None if none was taken."""


class Choice(NamedTuple):
    """Which layers become what, and what that changes."""

    layers: tuple[Layer, ...]
    """All linear layers of the blocks."""
    chosen: Layers
    """Those that take the places of others, by name."""
    gaps: tuple[Gap, ...]
    """Errors of the denoiser with them, by noise level."""

    @property
    def error(self) -> float:
        """One number for them, see `overall`."""
        return overall(self.gaps)


def check_quantisable(model: Model, config: QuantisedConfig) -> None:
    """CheckpointError if a model has no layers that could become those of ``config``."""
    name = model.provenance.get("checkpoint", "the model")
    before = model.config.linear
    if before.name not in ("dense", "ternary"):
        raise CheckpointError(
            f"{name} has {before.name} layers already; quantise the model that it was made of"
        )
    if not all(bool(p.isfinite().all()) for p in model.network.parameters()):
        raise CheckpointError(f"{name} has weights that are not finite; choose another checkpoint")
    if before.name == "ternary" and config.name != "ternary-packed":
        raise CheckpointError(
            f"{name} was trained with ternary layers; --to ternary-packed keeps them exactly"
        )


def check_answers(model: Model, probe: Probe) -> None:
    """CheckpointError if a network's output is nothing that an error could be relative to."""
    name = model.provenance.get("checkpoint", "the model")
    for sigma, found in zip(probe.sigmas, answers(model, probe), strict=True):
        if not bool(found.raw.isfinite().all()):
            raise CheckpointError(
                f"the network of {name} answers with numbers that are not finite at sigma "
                f"{float(sigma):.4g}; choose another checkpoint"
            )
        if not bool(found.raw.any()):
            raise CheckpointError(
                f"the network of {name} answers with nothing but 0 at sigma {float(sigma):.4g}; "
                "train it first"
            )


def packed_as_trained(config: TernaryConfig, wanted: QuantisedConfig) -> QuantisedConfig:
    """The packed form of layers that were trained ternary."""
    shape = {"granularity": config.granularity, "group": config.group, "skip": config.skip}
    return wanted.model_copy(update=shape)


def candidates(model: Model, config: QuantisedConfig) -> dict[str, nn.Linear]:
    """The layers that may become those of ``config``, by name; UsageError where there are none."""
    found = linears_in(model.network)
    if isinstance(model.config.linear, TernaryConfig):
        found = {name: layer for name, layer in found.items() if isinstance(layer, TernaryLinear)}
        if not found:
            raise UsageError(
                "there is no ternary layer to be packed: model.linear.skip left all of them dense "
                "in training"
            )
        return found
    for pattern in config.skip:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise UsageError(
                f"--skip {pattern} is the name of no linear layer in the blocks of the network; "
                f"they are called {', '.join(list(found)[:4])}, ..."
            )
    left = {
        name: layer
        for name, layer in found.items()
        if not any(fnmatchcase(name, pattern) for pattern in config.skip)
    }
    if not left:
        raise UsageError("no linear layer is left to be quantised; leave a --skip out")
    if isinstance(config, TernaryPackedConfig) and config.granularity == "group":
        for name, layer in left.items():
            if layer.in_features % config.group:
                raise UsageError(
                    f"--group {config.group} does not divide the {layer.in_features} inputs of "
                    f"{name}; name a divisor, or leave such layers out with --skip"
                )
    return left


def choose(
    model: Model,
    rounded: Layers,
    probe: Probe,
    *,
    kind: str,
    errors: Mapping[str, float] | None = None,
    target: float | None = None,
) -> Choice:
    """Choose among rounded layers, and measure what they change together.

    Layers stay dense, those first that cost most error for each of their weights, until the
    measured error is small enough. UsageError where no choice is.

    Args:
        model: in full precision or ternary; unchanged afterwards.
        rounded: what could take the place of each layer, by name, of `round_layers`.
        probe: images on which the error is measured.
        kind: name of the rounded layers, for the record.
        errors: squared error of each alone, of `layer_errors`.
        target: the largest error of the network, see `overall`; None takes all layers.
    """
    layers = linears_in(model.network)
    weights = {name: layers[name].weight.numel() for name in rounded}
    exact = list(answers(model, probe))
    budget = math.inf if target is None else target**2
    for _ in range(TRIES):
        dense = keep_dense(errors or {}, weights, budget=budget)
        chosen = {name: layer for name, layer in rounded.items() if name not in dense}
        if not chosen:
            break
        with exchanged(model.network, chosen):
            found = tuple(gaps(model, probe, exact))
        measured = overall(found)
        if target is None or measured <= target:
            rows = (_row(name, layer, chosen, kind, errors or {}) for name, layer in layers.items())
            return Choice(tuple(rows), chosen, found)
        # The prediction was off by this much; a little more, so that the next one fits.
        expected = sum(error for name, error in (errors or {}).items() if name in chosen)
        budget = 0.9 * expected * (target / measured) ** 2
    raise UsageError(
        f"no choice of layers keeps the error within {target:g}; allow more with --error, or "
        "choose more bits"
    )


def config_of(config: QuantisedConfig, choice: Choice) -> QuantisedConfig:
    """The settings that rebuild a choice: what stays dense is skipped."""
    dense = [layer.name for layer in choice.layers if layer.kind == DENSE]
    patterns = config.skip
    rest = [name for name in dense if not any(fnmatchcase(name, p) for p in patterns)]
    return config.model_copy(update={"skip": (*patterns, *rest)})


@contextmanager
def exchanged(network: nn.Module, layers: Layers) -> Iterator[None]:
    """While it lasts, ``layers`` stand in the places of those of their names."""
    before = {name: network.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            network.set_submodule(name, layer)
        yield
    finally:
        for name, layer in before.items():
            network.set_submodule(name, layer)


def _row(
    name: str, layer: nn.Linear, chosen: Layers, kind: str, errors: Mapping[str, float]
) -> Layer:
    error = math.sqrt(errors[name]) if name in errors else None
    return Layer(name, layer.weight.numel(), kind if name in chosen else DENSE, error)
