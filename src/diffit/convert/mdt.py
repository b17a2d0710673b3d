"""MDTv2 of sail-sg/MDT (April 2024)."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from diffit.config import parse
from diffit.convert import column, plain
from diffit.convert.diffit import relative_index
from diffit.convert.family import Published, Shapes
from diffit.convert.licences import UNKNOWN
from diffit.diffusion.formulation import DDPMConfig
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.mdt import MDTConfig

NETWORK = "mdt"
SOURCE = "sail-sg/MDT (MDTv2, April 2024)"
LICENCE = UNKNOWN

INSIDE = {f"block.{ours}": theirs for ours, theirs in column.BLOCK.items()} | {
    "block.modulation": "adaLN_modulation.1",
    "skip": "skip_linear",
}
"""Layers of a block, ours to theirs."""

SPARE = 3
"""Rows at the end of the reference's bias tables that belong to a class token it does not have."""


class Arguments(column.Arguments):
    """Arguments of the reference's constructor, under its names, with its defaults."""

    mask_ratio: float | None = None
    decode_layer: int = 4


TABLE = "attn.rel_pos_bias.relative_position_bias_table"


def recognises(names: Collection[str]) -> bool:
    """An encoder in two halves, a decoder, and the block of masked training beside them."""
    return {f"en_inblocks.0.{TABLE}", "de_blocks.0.attn.qkv.weight", "mask_token"} <= set(names)


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments; all can be seen but the mask ratio, which only training needs."""
    heads = column.shape_of(shapes, f"en_inblocks.0.{TABLE}", 2)[1]
    hidden, width = column.shape_of(shapes, "de_blocks.0.mlp.fc1.weight", 2)
    decoder = column.depth_of(shapes, "de_blocks.")
    known = {key: value for key, value in facts.items() if key in Arguments.model_fields}
    return {
        **column.infer(shapes, facts, heads=heads),
        "depth": 2 * column.depth_of(shapes, "en_inblocks.") + decoder,
        "decode_layer": decoder,
        "mlp_ratio": hidden / width,
        **known,
    }


def config(args: Mapping[str, Any]) -> MDTConfig:
    """Our configuration for the reference's constructor arguments; CheckpointError for others."""
    source = "arguments of mdt"
    try:
        given = parse(Arguments, args, source=source)
        if given.num_classes < 1:
            raise CheckpointError(f"{source}: num_classes must be at least 1")
        return parse(MDTConfig, _settings(given), source=source)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _settings(args: Arguments) -> dict[str, Any]:
    return column.settings(args) | {
        # The reference drops the block that is left over where the halves are unequal.
        "depth": args.depth - (args.depth - args.decode_layer) % 2,
        "decoder": args.decode_layer,
        "mask_ratio": args.mask_ratio or 0.0,
    }


def arguments(config: MDTConfig) -> dict[str, Any]:
    """The reference's constructor arguments; ValueError for what the reference cannot be."""
    channels, height, width = config.shape
    if height != width:
        raise ValueError(f"the code of mdt takes square images only, not {height} x {width}")
    args = {
        "input_size": height,
        "patch_size": config.patch,
        "in_channels": channels,
        "hidden_size": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "class_dropout_prob": 0.1 if config.null_class else 0.0,
        "num_classes": config.classes,
        "learn_sigma": config.learned_variance,
        "mask_ratio": config.mask_ratio or None,
        "decode_layer": config.decoder,
    }
    again = _settings(Arguments.model_validate(args))
    for field in type(config).model_fields:
        default = MDTConfig.model_fields[field].default
        if field != "size" and getattr(config, field) != again.get(field, default):
            raise ValueError(f"the code of mdt has no setting like {field} of this network")
    return args


def names(config: MDTConfig) -> dict[str, str]:
    """Our name of each tensor to the reference's."""
    half = (config.depth - config.decoder) // 2
    blocks = {"side": "sideblocks.0"}
    blocks |= {f"down.{i}": f"en_inblocks.{i}" for i in range(half)}
    blocks |= {f"up.{i}": f"en_outblocks.{i}" for i in range(half)}
    blocks |= {f"decoder.{i}": f"de_blocks.{i}" for i in range(config.decoder)}
    layers = {
        f"{ours}.{layer}": f"{theirs}.{name}"
        for ours, theirs in blocks.items()
        for layer, name in INSIDE.items()
    }
    layers |= column.AROUND | {"modulation": "final_layer.adaLN_modulation.1"}
    pairs = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in layers.items()
        for kind in ("weight", "bias")
    }
    tables = {f"{ours}.position.table": f"{theirs}.{TABLE}" for ours, theirs in blocks.items()}
    return (
        pairs
        | tables
        | {
            "position": "pos_embed",
            "position_out": "decoder_pos_embed",
            "mask_token": "mask_token",
            "label.table.weight": "y_embedder.embedding_table.weight",
        }
    )


def shapes(config: MDTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    rows, columns = config.grid
    table = ((2 * rows - 1) * (2 * columns - 1) + SPARE, config.heads)
    return column.shapes(config) | {
        "position_out": (1, rows * columns, config.width),
        "mask_token": (1, 1, config.width),
        **{ours: table for ours in names(config) if ours.endswith("position.table")},
    }


def derived(config: MDTConfig) -> dict[str, Tensor]:
    """The index buffers of the reference, one (N, N) for each block: they follow from the grid."""
    index = relative_index(config.grid)
    tables = [name for name in names(config).values() if name.endswith("bias_table")]
    return {name.replace("bias_table", "index"): index for name in tables}


def published(config: MDTConfig) -> Published:
    """As MDT is evaluated: power-cosine guidance of three channels up to 3.8."""
    guidance = {"guidance": 3.8, "guidance_schedule": "power-cosine", "guidance_power": 4.0}
    return Published(
        formulation=DDPMConfig(learned_variance=config.learned_variance),
        sampling=column.sampling(config, guidance_channels=3, **guidance),
        codec=column.codec(config.channels),
    )


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """The unmasked forward pass of MDTv2 (arXiv:2303.14389) on the release's tensors."""
    given = Arguments.model_validate(args)
    first = plain.patches(state, "x_embedder.proj", x) + state["pos_embed"].to(x)
    c = plain.silu(column.condition(state, time, label, x))
    side = math.isqrt(first.shape[1])
    place = torch.arange(side * side)
    down = place[:, None] // side - place // side + side - 1
    entry = down * (2 * side - 1) + place[:, None] % side - place % side + side - 1

    def block(name: str, tokens: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            both = torch.cat([tokens, skip], dim=-1)
            tokens = plain.linear(state, f"{name}.skip_linear", both)
        modulation = plain.linear(state, f"{name}.adaLN_modulation.1", c)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        normed = plain.layer_norm(tokens) * (1 + scale1) + shift1
        qkv = plain.linear(state, f"{name}.attn.qkv", normed)
        q, k, v = (plain.heads_of(part, given.num_heads) for part in qkv.chunk(3, dim=-1))
        bias = state[f"{name}.{TABLE}"].to(x)[entry].permute(2, 0, 1)
        mixed = plain.joined(plain.attention(q, k, v, bias))
        tokens = tokens + gate1 * plain.linear(state, f"{name}.attn.proj", mixed)
        normed = plain.layer_norm(tokens) * (1 + scale2) + shift2
        hidden = plain.gelu_tanh(plain.linear(state, f"{name}.mlp.fc1", normed))
        return tokens + gate2 * plain.linear(state, f"{name}.mlp.fc2", hidden)

    tokens, kept = first, []
    for i in range((given.depth - given.decode_layer) // 2):
        tokens = block(f"en_inblocks.{i}", tokens, None)
        kept.append(tokens)
    for i in range(len(kept)):
        tokens = block(f"en_outblocks.{i}", tokens, kept.pop())
    tokens = tokens + state["decoder_pos_embed"].to(x)
    for i in range(given.decode_layer):
        tokens = block(f"de_blocks.{i}", tokens, first)
    shift, scale = plain.linear(state, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    last = plain.linear(state, "final_layer.linear", plain.layer_norm(tokens) * (1 + scale) + shift)
    return plain.images(last, given.patch_size)
