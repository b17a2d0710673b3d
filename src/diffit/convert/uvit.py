"""U-ViT of baofff/U-ViT (2022 to 2023), class-conditional or without conditions."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffit.config import Settings, parse
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.uvit import UViTConfig

NETWORK = "uvit"

INSIDE = {
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
    "skip": "skip_linear",
}
"""Layers of a block, ours to theirs."""

AROUND = {
    "patch": "patch_embed.proj",
    "norm": "norm",
    "head": "decoder_pred",
    "conv": "final_layer",
    "time.hidden": "time_embed.0",
    "time.out": "time_embed.2",
}
"""Layers around the blocks, ours to theirs."""


class Arguments(Settings):
    """Arguments of the reference's constructor, under its names, with its defaults."""

    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    mlp_time_embed: bool = False
    num_classes: int = -1
    use_checkpoint: bool = False
    conv: bool = True
    skip: bool = True
    null_class: bool = True
    """None of the reference's: whether the last of ``num_classes`` rows stands for no class, as
    in the models trained for guidance, such as those of ImageNet at 256 and 512 pixels."""


def config(args: Mapping[str, Any]) -> UViTConfig:
    """Our configuration for the reference's constructor arguments; CheckpointError for others."""
    source = "arguments of uvit"
    try:
        given = parse(Arguments, args, source=source)
        if given.num_classes > 0 and given.num_classes - given.null_class < 1:
            raise CheckpointError(
                f"{source}: num_classes {given.num_classes} counts the row for no class, so there "
                "is no class left; with `null_class` false it counts none"
            )
        return parse(UViTConfig, _settings(given), source=source)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _settings(args: Arguments) -> dict[str, Any]:
    labelled = args.num_classes > 0
    return {
        "size": args.img_size,
        "patch": args.patch_size,
        "channels": args.in_chans,
        "width": args.embed_dim,
        # The reference halves and adds the middle: its 12 are 13 blocks.
        "depth": args.depth // 2 * 2 + 1,
        "heads": args.num_heads,
        "mlp_ratio": args.mlp_ratio,
        "qkv_bias": args.qkv_bias,
        "time_mlp": args.mlp_time_embed,
        "classes": args.num_classes - args.null_class if labelled else 0,
        "null_class": args.null_class if labelled else True,
        "conv": args.conv,
        "skip": args.skip,
    }


def arguments(config: UViTConfig) -> dict[str, Any]:
    """The reference's constructor arguments; ValueError for what the reference cannot be."""
    channels, height, width = config.shape
    if height != width:
        raise ValueError(f"the code of uvit takes square images only, not {height} x {width}")
    args = {
        "img_size": height,
        "patch_size": config.patch,
        "in_chans": channels,
        "embed_dim": config.width,
        "depth": config.depth - 1,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "mlp_time_embed": config.time_mlp,
        "num_classes": config.classes + config.null_class if config.classes else -1,
        "conv": config.conv,
        "skip": config.skip,
        "null_class": config.null_class,
    }
    again = _settings(Arguments.model_validate(args))
    for field in type(config).model_fields:
        default = UViTConfig.model_fields[field].default
        if getattr(config, field) != again.get(field, default) and field != "size":
            raise ValueError(f"the code of uvit has no setting like {field} of this network")
    return args


def names(config: UViTConfig) -> dict[str, str]:
    """Our name of each tensor to the reference's."""
    half = config.depth // 2
    blocks = {"middle": "mid_block"}
    blocks |= {f"down.{i}": f"in_blocks.{i}" for i in range(half)}
    blocks |= {f"up.{i}": f"out_blocks.{i}" for i in range(half)}
    layers = {
        f"{ours}.{layer}": f"{theirs}.{name}"
        for ours, theirs in blocks.items()
        for layer, name in INSIDE.items()
    } | AROUND
    pairs = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in layers.items()
        for kind in ("weight", "bias")
    }
    return pairs | {"position": "pos_embed", "label.table.weight": "label_emb.weight"}


def shapes(config: UViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    rows, columns = config.grid
    return {
        "patch.weight": (config.width, config.channels, config.patch, config.patch),
        "position": (1, config.extra + rows * columns, config.width),
    }


def derived(config: UViTConfig) -> dict[str, Tensor]:
    """Nothing: every tensor of the reference is a weight."""
    return {}
