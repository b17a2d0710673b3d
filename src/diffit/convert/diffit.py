"""Latent DiffiT of NVlabs/DiffiT, the release of March 2026."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from diffit.convert import column, plain
from diffit.convert.family import Published, Shapes
from diffit.convert.licences import NVIDIA
from diffit.diffusion.formulation import DDPMConfig
from diffit.networks.latent_diffit import LatentDiffiTConfig

NETWORK = "latent-diffit"
SOURCE = "NVlabs/DiffiT (March 2026)"
LICENCE = NVIDIA
DEPTH = 30  # default of the reference's class; its factory and its checkpoints have 28

TABLE, INDEX = "attn.relative_position_bias_table", "attn.relative_position_index"


def recognises(names: Collection[str]) -> bool:
    """TMSA's time projection beside a position bias."""
    return {f"blocks.0.{TABLE}", "blocks.0.attn.qkv_temb.weight"} <= set(names)


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments; all of them can be seen."""
    heads = column.shape_of(shapes, f"blocks.0.{TABLE}", 2)[1]
    return column.infer(shapes, facts, heads=heads)


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
        f"column.{i}.attention.position.table": f"blocks.{i}.{TABLE}" for i in range(config.depth)
    }
    column_names = column.names(config.depth, inside, column.AROUND)
    return column_names | {"position": "pos_embed"} | tables


def shapes(config: LatentDiffiTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    return column.shapes(config)


def derived(config: LatentDiffiTConfig) -> dict[str, Tensor]:
    """The index buffers of the reference, one (N, N) for each block: they follow from the grid."""
    index = relative_index(config.grid)
    return {f"blocks.{i}.{INDEX}": index for i in range(config.depth)}


def published(config: LatentDiffiTConfig) -> Published:
    """The release: power-cosine guidance up to a latent side of 32, constant above."""
    if max(config.shape[1:]) <= 32:
        guidance = {"guidance": 4.4, "guidance_schedule": "power-cosine", "guidance_power": 4.0}
    else:
        guidance = {"guidance": 1.49}
    return Published(
        formulation=DDPMConfig(learned_variance=config.learned_variance),
        sampling=column.sampling(config, guidance_channels=3, **guidance),
        codec=column.codec(config.channels),
    )


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """Equations 3-8 of the paper on the release's tensors, with the SiLU before its last layer."""
    tokens = plain.patches(state, "x_embedder.proj", x) + state["pos_embed"].to(x)
    c = column.condition(state, time, label, x)
    side = args["input_size"] // args["patch_size"]
    # One entry for each pair: (row difference + w - 1)(2w - 1) + column difference + w - 1.
    place = torch.arange(side * side)
    down = place[:, None] // side - place // side
    across = place[:, None] % side - place % side
    entry = (down + side - 1) * (2 * side - 1) + across + side - 1
    for i in range(args["depth"]):
        block = f"blocks.{i}"
        qkv = plain.linear(state, f"{block}.attn.qkv", plain.layer_norm(tokens))
        qkv = qkv + plain.linear(state, f"{block}.attn.qkv_temb", c)[:, None]
        q, k, v = (plain.heads_of(part, args["num_heads"]) for part in qkv.chunk(3, dim=-1))
        bias = state[f"{block}.{TABLE}"].to(x)[entry].permute(2, 0, 1)
        mixed = plain.joined(plain.attention(q, k, v, bias))
        tokens = tokens + plain.linear(state, f"{block}.attn.proj", mixed)
        hidden = plain.linear(state, f"{block}.mlp.fc1", plain.layer_norm(tokens))
        tokens = tokens + plain.linear(state, f"{block}.mlp.fc2", plain.gelu_tanh(hidden))
    last = plain.linear(state, "final_layer.linear", plain.silu(plain.layer_norm(tokens)))
    return plain.images(last, args["patch_size"])


def relative_index(grid: tuple[int, int]) -> Tensor:
    """(N, N) int64: entry of the bias table for each query (first) and key (second)."""
    rows, columns = grid
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    down = row[:, None] - row + rows - 1
    across = column[:, None] - column + columns - 1
    return down * (2 * columns - 1) + across
