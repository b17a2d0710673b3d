"""The kinds of linear layers that a network's blocks may be made of."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from diffit.config import Settings, nearest
from diffit.errors import ConfigError
from diffit.nn.packed import PackedTernary, TernaryPackedConfig
from diffit.nn.quantized import Int4Config, Int4Linear, Int8Config, Int8Linear
from diffit.nn.swap import linears_in, swap_linears_
from diffit.nn.ternary import TernaryConfig, TernaryLinear


class DenseConfig(Settings):
    """Linear layers of full-precision weights."""

    name: Literal["dense"] = "dense"
    """Kind of the linear layers in the network's blocks."""


LinearConfig = Annotated[
    DenseConfig | TernaryConfig | TernaryPackedConfig | Int8Config | Int4Config,
    Field(discriminator="name"),
]
"""The settings of any kind."""

LINEARS: dict[str, Callable[[nn.Linear, Any], nn.Module]] = {
    "ternary": TernaryLinear.of,
    "ternary-packed": PackedTernary.of,
    "int8": Int8Linear.of,
    "int4": Int4Linear.of,
}
"""Name of each kind but the dense one -> what makes such a layer of a dense one."""


def use_linears_(network: nn.Module, config: LinearConfig) -> list[str]:
    """Make the linear layers in a network's blocks those of a configuration.

    Returns:
        The names of the layers that were replaced; ConfigError where ``skip`` names none.
    """
    if isinstance(config, DenseConfig):
        return []
    names = list(linears_in(network))
    for pattern in config.skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"model.linear.skip {pattern!r} is the name of no linear layer in the blocks of "
                f"the network; {nearest(pattern, names)}"
            )
    make = LINEARS[config.name]
    return swap_linears_(
        network,
        lambda layer: make(layer, config),
        lambda name: not any(fnmatchcase(name, pattern) for pattern in config.skip),
    )
