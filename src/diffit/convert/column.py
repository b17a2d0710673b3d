"""What the reference codes of DiffiT and DiT share: arguments, names, shapes.

The release of DiffiT was written on the code of DiT, so that most names are the same.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from diffit.config import Settings, parse
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.dit import DiTConfig
from diffit.networks.latent_diffit import LatentDiffiTConfig
from diffit.networks.mdt import MDTConfig


class Arguments(Settings):
    """Arguments of the reference constructors, under their names, with DiT's defaults."""

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True


C = TypeVar("C", bound=Settings)


def build(kind: type[C], args: Mapping[str, Any], *, family: str) -> C:
    """Constructor arguments as a configuration of ours; CheckpointError for wrong ones."""
    source = f"arguments of {family}"
    try:
        given = parse(Arguments, args, source=source)
        if given.num_classes < 1:
            raise CheckpointError(f"{source}: num_classes must be at least 1")
        return parse(kind, settings(given), source=source)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def settings(args: Arguments) -> dict[str, Any]:
    """Constructor arguments under our names."""
    return {
        "size": args.input_size,
        "patch": args.patch_size,
        "channels": args.in_channels,
        "width": args.hidden_size,
        "depth": args.depth,
        "heads": args.num_heads,
        "mlp_ratio": args.mlp_ratio,
        "classes": args.num_classes,
        "learned_variance": args.learn_sigma,
        # Without label dropout the references have no row for "no class".
        "null_class": args.class_dropout_prob > 0,
    }


def arguments(config: LatentDiffiTConfig | DiTConfig, *, family: str) -> dict[str, Any]:
    """The inverse of `build`; ValueError for what the reference cannot be."""
    channels, height, width = config.shape
    if height != width:
        raise ValueError(f"the code of {family} takes square images only, not {height} x {width}")
    args = Arguments(
        input_size=height,
        patch_size=config.patch,
        in_channels=channels,
        hidden_size=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        class_dropout_prob=0.1 if config.null_class else 0.0,
        num_classes=config.classes,
        learn_sigma=config.learned_variance,
    )
    again = build(type(config), args.model_dump(), family=family)
    for field in type(config).model_fields:
        if field != "size" and getattr(config, field) != getattr(again, field):
            raise ValueError(f"the code of {family} has no setting like {field} of this network")
    return args.model_dump()


def names(depth: int, inside: Mapping[str, str], outside: Mapping[str, str]) -> dict[str, str]:
    """Our name to the reference's, for each tensor of a column of ``depth`` blocks.

    ``inside`` names the layers of a block, ``outside`` those around the blocks.
    """
    layers = {
        f"column.{i}.{ours}": f"blocks.{i}.{theirs}"
        for i in range(depth)
        for ours, theirs in inside.items()
    } | dict(outside)
    pairs = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in layers.items()
        for kind in ("weight", "bias")
    }
    return pairs | {
        "position": "pos_embed",
        "label.table.weight": "y_embedder.embedding_table.weight",
    }


BLOCK = {
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
"""Layers of a block that both families have, ours to theirs."""

AROUND = {
    "patch": "x_embedder.proj",
    "time.hidden": "t_embedder.mlp.0",
    "time.out": "t_embedder.mlp.2",
    "head": "final_layer.linear",
}
"""Layers around the blocks that both families have, ours to theirs."""


def shapes(config: LatentDiffiTConfig | DiTConfig | MDTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    rows, columns = config.grid
    return {
        "patch.weight": (config.width, config.shape[0], config.patch, config.patch),
        "position": (1, rows * columns, config.width),
    }
