"""TerDiT of Lucky-Lance/TerDiT (June 2024): Large-DiT with ternary layers, trained or packed."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffit.convert import column, large_dit, plain
from diffit.convert.family import Published, Shapes
from diffit.convert.licences import TERDIT
from diffit.networks.large_dit import LargeDiTConfig
from diffit.nn.linears import LinearConfig
from diffit.nn.packed import PackedTernary, TernaryPackedConfig
from diffit.nn.ternary import TernaryConfig, TernaryLinear

NETWORK = "large-dit"
SOURCE = "Lucky-Lance/TerDiT (June 2024)"
LICENCE = TERDIT


def recognises(names: Collection[str]) -> bool:
    """LLaMA's layers with a norm after what modulates them."""
    wanted = {"layers.0.attention.wq.weight", "layers.0.adaLN_modulation.2.weight"}
    return wanted <= set(names)


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from shapes; the size of images is in no tensor."""
    width = column.shape_of(shapes, "x_embedder.weight", 2)[0]
    rows = column.shape_of(shapes, "layers.0.attention.wq.weight", 2)[0]
    hidden = column.shape_of(shapes, "layers.0.feed_forward.w1.weight", 2)[0]
    return large_dit.arguments_in(shapes, facts, hidden=hidden if rows == width else 4 * hidden)


def linear(state: Mapping[str, Tensor]) -> LinearConfig:
    """Packed layers where the file holds bytes, as released; else masters, as in training."""
    name = "layers.0.attention.wq.weight"
    packed = name in state and not state[name].is_floating_point()
    return TernaryPackedConfig() if packed else TernaryConfig()


def config(args: Mapping[str, Any]) -> LargeDiTConfig:
    """Our configuration for the reference's constructor arguments; CheckpointError for others."""
    return large_dit.build(args, family="terdit", modulation_norm=True)


def arguments(config: LargeDiTConfig) -> dict[str, Any]:
    """The inverse of `config`; ValueError for what the reference cannot be."""
    return large_dit.arguments_of(config, family="terdit", modulation_norm=True)


def check_layers(layers: Sequence[nn.Module]) -> None:
    """ValueError unless all layers of the blocks are masters, or packed, with one learned scale."""
    for kind in (TernaryLinear, PackedTernary):
        if all(isinstance(layer, kind) and _has_one_scale(layer) for layer in layers):
            return
    raise ValueError(
        "the code of terdit has one learned scale for each matrix in the blocks, all of which are "
        "ternary; those of this network are otherwise"
    )


def _has_one_scale(layer: Any) -> bool:
    scale = layer.scale
    return scale is not None and tuple(scale.shape) == (1,)


def names(config: LargeDiTConfig) -> dict[str, str]:
    """Our name of each tensor to the reference's."""
    found = large_dit.names(config)
    for ours, theirs in large_dit.matrices(config).items():
        found |= {f"{ours}.codes": f"{theirs}.weight", f"{ours}.scale": f"{theirs}.alphas"}
    for i in range(config.depth):
        norm = f"layers.{i}.adaLN_modulation.2.weight"
        found[f"column.{i}.modulation_norm.weight"] = norm
    return found


def shapes(config: LargeDiTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of packed matrices in the reference, by our name: four outputs a byte."""
    width, hidden = config.width, config.hidden
    ends = {
        "modulation": (6 * width, config.condition),
        "gate": (hidden, width),
        "up": (hidden, width),
        "down": (width, hidden),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name in large_dit.matrices(config):
        outputs, inputs = ends.get(name.rpartition(".")[2], (width, width))
        found[f"{name}.codes"] = (outputs // 4, inputs)
    return found


def derived(config: LargeDiTConfig) -> dict[str, Tensor]:
    """Nothing: the reference stores weights alone."""
    return {}


def published(config: LargeDiTConfig) -> Published:
    """As the tables of the release are measured: guidance 1.5, on three channels."""
    return large_dit.published(config)


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """The forward pass on the reference's tensors, packed or masters."""
    return large_dit.forward_with(_matrix, state, args, x, time, label)


def _matrix(state: plain.State, name: str) -> Tensor:
    """alpha Q: of a packed matrix, or of masters (Section 3.1)."""
    weight, alpha = state[f"{name}.weight"], state[f"{name}.alphas"].double()
    if weight.dtype == torch.uint8:
        quarters = [weight // 4**place % 4 for place in (3, 2, 1, 0)]
        return alpha * (torch.cat(quarters).double() - 1)
    # In float32, as the code has it: another precision would round some entries to other codes.
    masters = weight.float()
    gamma = masters.abs().reshape(1, -1).mean(dim=1)
    return alpha * (masters / (gamma + 1e-6)).round().clamp(-1, 1).double()
