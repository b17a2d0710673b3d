"""Layers rounded with a view to what comes into them: `compensated`, on real images."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from diffit.data.example import Follow
from diffit.deploy.probe import Probe, answer
from diffit.deploy.quantize import QuantisedConfig
from diffit.model import Model
from diffit.nn.packed import PackedTernary
from diffit.nn.quantized import Int4Config, Int4Linear, Int8Config, Int8Linear
from diffit.nn.rounding import compensated
from diffit.nn.ternary import TernaryLinear, dequantise, ternarise

GRAM_BYTES = 1 << 30
"""Grams that are kept at once; the calibration runs once more for each part of the layers."""

ROWS_AN_INPUT = 2
"""A gram of fewer rows leaves directions unseen, into which compensation would shift the error."""


@torch.no_grad()
def round_layers(
    model: Model,
    layers: Mapping[str, nn.Linear],
    config: QuantisedConfig,
    probe: Probe | None,
    *,
    follow: Follow = iter,
) -> dict[str, nn.Module]:
    """What takes the place of each layer; layers that are one layer get one.

    Args:
        model: in full precision or ternary.
        layers: of the model's network, by name.
        config: the kind of what replaces them.
        probe: images for the calibration; None rounds each weight by itself. Layers that were
            trained ternary are packed as they are.
        follow: wraps the numbers of the noise levels, to show progress; once for each part.
    """
    made: dict[nn.Module, nn.Module] = {}
    for part in parts(dict.fromkeys(layers.values())):
        trained = all(isinstance(layer, TernaryLinear) for layer in part)
        found = {} if probe is None or trained else grams(model, probe, part, follow=follow)
        for layer in part:
            made[layer] = _rounded(layer, config, found.pop(layer, None))
    return {name: made[layer] for name, layer in layers.items()}


def parts(layers: Iterable[nn.Linear]) -> Iterator[list[nn.Linear]]:
    """The layers in parts whose grams fit into memory at once."""
    part: list[nn.Linear] = []
    room = GRAM_BYTES
    for layer in layers:
        size = 4 * layer.in_features**2
        if part and size > room:
            yield part
            part, room = [], GRAM_BYTES
        part.append(layer)
        room -= size
    if part:
        yield part


@torch.no_grad()
def grams(
    model: Model, probe: Probe, layers: Iterable[nn.Linear], *, follow: Follow = iter
) -> dict[nn.Linear, Tensor]:
    """(in, in) sums of the outer products of each layer's inputs, where they are enough of them."""
    sums: dict[nn.Linear, Tensor] = {}
    rows: dict[nn.Linear, int] = {}

    def hook(layer: Any, given: tuple[Tensor, ...]) -> None:
        x = given[0].reshape(-1, layer.in_features).float()
        if layer not in sums:
            sums[layer], rows[layer] = x.T @ x, len(x)
        else:
            sums[layer].addmm_(x.T, x)
            rows[layer] += len(x)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        for level in follow(range(len(probe))):
            answer(model, probe[level])
    return {
        layer: gram
        for layer, gram in sums.items()
        if rows[layer] >= ROWS_AN_INPUT * layer.in_features
    }


def _rounded(layer: nn.Linear, config: QuantisedConfig, gram: Tensor | None) -> nn.Module:
    if isinstance(config, Int8Config):
        return Int8Linear.of(layer, config, gram=gram)
    if isinstance(config, Int4Config):
        return Int4Linear.of(layer, config, gram=gram)
    if gram is None:
        return PackedTernary.of(layer, config)
    weight = layer.weight.detach()
    codes, scale = ternarise(weight, granularity=config.granularity, group=config.group)
    whole = dequantise(torch.ones_like(codes), scale)
    codes = compensated(weight, whole, 1, gram).to(torch.int8)
    return PackedTernary.from_codes(
        codes, scale, layer.bias, storage=config.storage, activations=config.activations
    )
