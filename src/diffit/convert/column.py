"""What the codes of DiffiT, its forks and DiT share: arguments, names, shapes, how they are used.

The release of DiffiT was written on the code of DiT, so that most names are the same.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from torch import Tensor

from diffit.codecs import AutoencoderConfig, CodecConfig, PixelsConfig
from diffit.config import Settings, parse
from diffit.convert import plain
from diffit.convert.family import Shapes
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.dit import DiTConfig
from diffit.networks.large_dit import LargeDiTConfig
from diffit.networks.latent_diffit import LatentDiffiTConfig
from diffit.networks.mdt import MDTConfig
from diffit.networks.shared import SIZES
from diffit.sampling import SamplingConfig


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


def build(
    kind: type[C], args: Mapping[str, Any], *, family: str, extra: Mapping[str, Any] | None = None
) -> C:
    """Constructor arguments, and ``extra`` settings of ours, as a configuration of ours."""
    source = f"arguments of {family}"
    try:
        given = parse(Arguments, args, source=source)
        if given.num_classes < 1:
            raise CheckpointError(f"{source}: num_classes must be at least 1")
        return parse(kind, settings(given) | dict(extra or {}), source=source)
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


def arguments(
    config: LatentDiffiTConfig | DiTConfig,
    *,
    family: str,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The inverse of `build`; ValueError for what the reference cannot be."""
    channels, height, width = config.shape
    if height != width:
        raise ValueError(f"the code of {family} takes square images only, not {height} x {width}")
    if not config.classes:
        raise ValueError(f"the code of {family} takes models with classes only")
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
    again = build(type(config), args.model_dump(), family=family, extra=extra)
    for field in type(config).model_fields:
        # Dropout acts in training alone: it changes no weights.
        same = getattr(config, field) == getattr(again, field)
        if not same and field not in ("size", "dropout", "dropout_at"):
            raise ValueError(f"the code of {family} has no setting like {field} of this network")
    return args.model_dump()


def infer(shapes: Shapes, facts: Mapping[str, Any], *, heads: int | None) -> dict[str, Any]:
    """Constructor arguments from shapes; those of ``facts`` win.

    Args:
        shapes: of the checkpoint's tensors.
        facts: arguments that are known; without `input_size` it follows from the position table.
        heads: if the shapes tell it; else that of the published size of this width.
    """
    width, channels, patch, _ = shape_of(shapes, "x_embedder.proj.weight", 4)
    outputs = shape_of(shapes, "final_layer.linear.weight", 2)[0]
    rows = shape_of(shapes, "y_embedder.embedding_table.weight", 2)[0]
    known = {key: value for key, value in facts.items() if key in Arguments.model_fields}
    args: dict[str, Any] = {
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": depth_of(shapes, "blocks."),
        "learn_sigma": learns_variance(outputs, channels * patch**2),
        # One row more than classes, unless the file says that there are as many.
        "num_classes": rows - 1,
        "class_dropout_prob": 0.1,
    }
    if known.get("num_classes") == rows:
        args["class_dropout_prob"] = 0.0
    if "pos_embed" in shapes:
        args["input_size"] = math.isqrt(shape_of(shapes, "pos_embed", 3)[1]) * patch
    if "blocks.0.mlp.fc1.weight" in shapes:
        args["mlp_ratio"] = shapes["blocks.0.mlp.fc1.weight"][0] / max(width, 1)
    return {**args, "num_heads": known.get("num_heads") or heads or usual_heads(width), **known}


def shape_of(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor; CheckpointError if it is missing or has another number of axes."""
    if name not in shapes:
        raise CheckpointError(f"the checkpoint lacks {name}; it is damaged, or of another family")
    if len(shapes[name]) != axes or not all(shapes[name]):
        given = " x ".join(map(str, shapes[name])) or "a single number"
        raise CheckpointError(f"{name} is {given}, which no network of this family has")
    return tuple(shapes[name])


def depth_of(shapes: Shapes, prefix: str) -> int:
    """Number of blocks, from names such as `blocks.3.attn.qkv.weight`."""
    numbers = [name.removeprefix(prefix).partition(".")[0] for name in shapes if prefix in name]
    return max((int(n) + 1 for n in numbers if n.isdecimal() and len(n) < 5), default=0)


def learns_variance(outputs: int, values: int) -> bool:
    """Whether a last layer gives a variance beside each value; CheckpointError if neither fits."""
    if outputs not in (values, 2 * values):
        raise CheckpointError(
            f"the last layer gives {outputs} numbers a patch; a patch has {values}, or "
            f"{2 * values} with a learned variance"
        )
    return outputs == 2 * values


def usual_heads(width: int) -> int:
    """Heads of the published size of this width; CheckpointError if there is none."""
    for size in SIZES.values():
        if size.width == width:
            return size.heads
    raise CheckpointError(
        f"the weights do not tell the number of heads, and no published size has width {width}; "
        "name it with --heads"
    )


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
    return pairs | {"label.table.weight": "y_embedder.embedding_table.weight"}


ATTENTION = {"attention.qkv": "attn.qkv", "attention.out": "attn.proj"}
"""Layers of a block that all families have, ours to theirs."""

BLOCK = ATTENTION | {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
"""Layers of a block that DiffiT and DiT have."""

AROUND = {
    "patch": "x_embedder.proj",
    "time.hidden": "t_embedder.mlp.0",
    "time.out": "t_embedder.mlp.2",
    "head": "final_layer.linear",
}
"""Layers around the blocks, ours to theirs."""


def shapes(config: LatentDiffiTConfig | DiTConfig | MDTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    rows, columns = config.grid
    return {
        "patch.weight": (config.width, config.shape[0], config.patch, config.patch),
        "position": (1, rows * columns, config.width),
    }


def sampling(
    config: LatentDiffiTConfig | DiTConfig | MDTConfig | LargeDiTConfig, **guidance: Any
) -> SamplingConfig:
    """The 250 ancestral steps of the releases, with their guidance where there is a null class."""
    sampler = "ancestral-learned" if config.learned_variance else "ancestral"
    chosen = guidance if config.classes and config.null_class else {}
    channels = min(chosen.pop("guidance_channels", config.channels), config.channels)
    if chosen and channels < config.channels:
        chosen["guidance_channels"] = channels
    return SamplingConfig(sampler=sampler, steps=250, **chosen)


def codec(channels: int, rounding: Literal["nearest", "down"] = "down") -> CodecConfig:
    """What DiffiT and DiT decode with: Stable Diffusion's autoencoder, fractions cut off.

    Networks of other than its 4 channels are taken for networks of pixels.
    """
    if channels != 4:
        return PixelsConfig(rounding=rounding)
    return AutoencoderConfig(
        path="stabilityai/sd-vae-ft-ema", kind="kl", channels=4, factor=8, scale=0.18215,
        shift=0.0, rounding=rounding,
    )  # fmt: skip


def condition(state: plain.State, time: Tensor, label: Tensor, like: Tensor) -> Tensor:
    """(B, C): the time embedding plus the label's row, as DiT's code computes them."""
    hidden = plain.linear(state, "t_embedder.mlp.0", plain.time_features(time).to(like))
    vector = plain.table_rows(state, "y_embedder.embedding_table", label, like)
    return plain.linear(state, "t_embedder.mlp.2", plain.silu(hidden)) + vector
