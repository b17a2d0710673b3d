"""Fine-tuning: what a new network can take over from a checkpoint of another shape."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffit.checkpoint import load
from diffit.errors import CheckpointError
from diffit.model import Model
from diffit.nn.attention import RelativeBias
from diffit.nn.embed import LabelEmbedding
from diffit.nn.ternary import TernaryLinear
from diffit.training.folder import write_whole

FITTED = "fitted to the weights"
"""How scales come about that a checkpoint has not."""


@dataclass
class Report:
    """What became of each tensor.

    Attributes:
        source: checkpoint and name of its weights.
        carried: taken over as they are.
        changed: taken over in another shape, and how.
        fresh: of the new network, left as initialised, and why.
        unused: of the checkpoint, for which the new network has no place.
    """

    source: str
    carried: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


@torch.no_grad()
def carry_over(model: Model, path: str | Path) -> Report:
    """Fill a model's network from a checkpoint, as far as the two agree.

    Position biases of another window are interpolated; rows of the class table go to the classes
    of the same name, or without names to those of the same number; the first and last convolution
    pass from grey to colour and back. Dense weights become the masters of ternary layers.
    CheckpointError for integer or packed weights, which are no start for any.
    """
    source = load(path)
    if source.config.linear.name not in ("dense", "ternary"):
        raise CheckpointError(
            f"{path} has {source.config.linear.name} layers, which cannot be trained further; "
            "start from the model that it was made of"
        )
    report = Report(f"{source.provenance['checkpoint']} ({source.provenance['weights']})")
    old = source.network.state_dict()
    new = model.network.state_dict()
    for key, tensor in new.items():
        if key not in old:
            report.fresh[key] = "not in the checkpoint"
            continue
        fitted, how = _fit(key, old[key], tensor, source, model)
        if fitted is None:
            report.fresh[key] = how
            continue
        tensor.copy_(fitted)
        if how:
            report.changed[key] = how
        else:
            report.carried.append(key)
    _fit_scales(model.network, report)
    report.unused = sorted(old.keys() - new.keys())
    return report


def _fit_scales(network: nn.Module, report: Report) -> None:
    """Scales of ternary layers that the checkpoint does not have follow from its weights."""
    for name, layer in network.named_modules():
        scale = f"{name}.scale"
        if isinstance(layer, TernaryLinear) and scale in report.fresh:
            if f"{name}.weight" in report.fresh:
                continue
            layer.fit_scale()
            del report.fresh[scale]
            report.changed[scale] = FITTED


def _fit(
    key: str, old: Tensor, new: Tensor, source: Model, model: Model
) -> tuple[Tensor | None, str]:
    """``old`` in the shape of ``new`` and how it got it (empty: as it was), or None and why."""
    owner = model.network.get_submodule(key.rpartition(".")[0].removesuffix(".table"))
    if isinstance(owner, LabelEmbedding):
        return _fit_classes(old, new, source, model)
    if old.shape == new.shape:
        return old, ""
    if isinstance(owner, RelativeBias):
        before = source.network.get_submodule(key.rpartition(".")[0])
        if isinstance(before, RelativeBias) and old.shape[1] == new.shape[1]:
            return _resize_bias(old, before.grid, owner.grid), f"{before.grid} to {owner.grid}"
    if isinstance(owner, nn.Conv2d):
        channels = source.shape[0], model.shape[0]
        fitted = _fit_channels(old, new, channels)
        if fitted is not None:
            return fitted, f"{channels[0]} to {channels[1]} channels"
    return None, f"shape {list(old.shape)} in the checkpoint, {list(new.shape)} here"


def _fit_classes(
    old: Tensor, new: Tensor, source: Model, model: Model
) -> tuple[Tensor | None, str]:
    if old.shape[1] != new.shape[1]:
        return None, f"rows of {old.shape[1]} numbers in the checkpoint, {new.shape[1]} here"
    rows = _matching(source, model)
    fitted = new.clone()
    for row, origin in rows.items():
        fitted[row] = old[origin]
    # The rows behind the classes stand for "no class".
    if len(old) > source.classes and len(new) > model.classes:
        fitted[model.classes] = old[source.classes]
    same = rows == {i: i for i in range(source.classes)} and source.classes == model.classes
    return fitted, "" if same else f"{len(rows)} of {model.classes} classes"


def _matching(source: Model, model: Model) -> dict[int, int]:
    """Each class of ``model`` that the source knows -> its number there."""
    before, after = source.config.class_names, model.config.class_names
    if before and after and set(before) & set(after):
        return {i: before.index(name) for i, name in enumerate(after) if name in before}
    return {i: i for i in range(min(source.classes, model.classes))}


def _resize_bias(table: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """A ((2h-1)(2w-1), heads) table for a window of another size, bicubic, ends on ends."""
    image = rearrange(table, "(h w) heads -> 1 heads h w", h=2 * before[0] - 1)
    size = (2 * after[0] - 1, 2 * after[1] - 1)
    resized = F.interpolate(image.float(), size=size, mode="bicubic", align_corners=True)
    return rearrange(resized, "1 heads h w -> (h w) heads").to(table)


def _fit_channels(old: Tensor, new: Tensor, channels: tuple[int, int]) -> Tensor | None:
    """The first or last convolution of a network for grey instead of colour images, or back."""
    if set(channels) != {1, 3}:
        return None
    for axis in range(min(2, old.ndim)):
        expected = list(old.shape)
        expected[axis] = channels[1]
        if old.shape[axis] == channels[0] and list(new.shape) == expected:
            # The same answer to a grey picture: sums over inputs stay, outputs are repeated.
            share = 1 / 3 if axis == 1 and channels[1] == 3 else 1.0
            if channels[1] == 3:
                return old.expand(expected) * share
            return old.sum(axis, keepdim=True) if axis == 1 else old.mean(axis, keepdim=True)
    return None


def describe(report: Report) -> list[str]:
    """The report in sentences for the console."""
    lines = [f"starting from {report.source}: {len(report.carried)} tensors taken over"]
    fitted = [key for key, how in report.changed.items() if how == FITTED]
    shown = {key: how for key, how in report.changed.items() if how != FITTED}
    lines += [f"  {key}: taken over, {how}" for key, how in shown.items()]
    lines += [f"  scales of {len(fitted)} ternary layers: {FITTED}"] if fitted else []
    lines += [f"  {key}: starts afresh, {why}" for key, why in report.fresh.items()]
    lines += [f"  {key}: of the checkpoint alone, not used" for key in report.unused]
    return lines


def write_report(path: Path, report: Report) -> None:
    """Write the whole report as JSON."""
    write_whole(path, json.dumps(asdict(report), indent=1) + "\n")
