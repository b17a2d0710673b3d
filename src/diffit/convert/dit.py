"""DiT of facebookresearch/DiT (June 2023)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffit.convert import column
from diffit.networks.dit import DiTConfig

NETWORK = "dit"


def config(args: Mapping[str, Any]) -> DiTConfig:
    """Our configuration for the reference's constructor arguments."""
    return column.build(DiTConfig, args, family="dit")


def arguments(config: DiTConfig) -> dict[str, Any]:
    """The reference's constructor arguments for our configuration."""
    return column.arguments(config, family="dit")


def names(config: DiTConfig) -> dict[str, str]:
    """Our name of each tensor to the reference's."""
    inside = column.BLOCK | {"modulation": "adaLN_modulation.1"}
    outside = column.AROUND | {"modulation": "final_layer.adaLN_modulation.1"}
    return column.names(config.depth, inside, outside)


def shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    return column.shapes(config)


def derived(config: DiTConfig) -> dict[str, Tensor]:
    """Nothing: every tensor of the reference is a weight."""
    return {}
