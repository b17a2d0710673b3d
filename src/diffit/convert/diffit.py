"""Latent DiffiT of NVlabs/DiffiT, the release of March 2026."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffit.convert import column
from diffit.networks.latent_diffit import LatentDiffiTConfig

NETWORK = "latent-diffit"
DEPTH = 30  # default of the reference's class; its factory and its checkpoints have 28


def config(args: Mapping[str, Any]) -> LatentDiffiTConfig:
    """Our configuration for the reference's constructor arguments."""
    return column.build(LatentDiffiTConfig, {"depth": DEPTH, **args}, family="diffit")


def arguments(config: LatentDiffiTConfig) -> dict[str, Any]:
    """The reference's constructor arguments for our configuration."""
    return column.arguments(config, family="diffit")


def names(config: LatentDiffiTConfig) -> dict[str, str]:
    """Our name of each tensor to the reference's."""
    inside = column.BLOCK | {"attention.qkv_time": "attn.qkv_temb"}
    tables = {
        f"column.{i}.attention.position.table": f"blocks.{i}.attn.relative_position_bias_table"
        for i in range(config.depth)
    }
    return column.names(config.depth, inside, column.AROUND) | tables


def shapes(config: LatentDiffiTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    return column.shapes(config)


def derived(config: LatentDiffiTConfig) -> dict[str, Tensor]:
    """The index buffers of the reference, one (N, N) for each block: they follow from the grid."""
    index = relative_index(config.grid)
    return {f"blocks.{i}.attn.relative_position_index": index for i in range(config.depth)}


def relative_index(grid: tuple[int, int]) -> Tensor:
    """(N, N) int64: entry of the bias table for each query (first) and key (second)."""
    rows, columns = grid
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    down = row[:, None] - row + rows - 1
    across = column[:, None] - column + columns - 1
    return down * (2 * columns - 1) + across
