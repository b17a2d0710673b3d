"""MDTv2 of sail-sg/MDT (April 2024)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffit.config import parse
from diffit.convert import column
from diffit.convert.diffit import relative_index
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.mdt import MDTConfig

NETWORK = "mdt"

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
    tables = {
        f"{ours}.position.table": f"{theirs}.attn.rel_pos_bias.relative_position_bias_table"
        for ours, theirs in blocks.items()
    }
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
