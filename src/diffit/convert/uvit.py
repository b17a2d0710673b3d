"""U-ViT of baofff/U-ViT (2022 to 2023), class-conditional or without conditions."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.codecs import AutoencoderConfig, CodecConfig, PixelsConfig
from diffit.config import Settings, parse
from diffit.convert import plain
from diffit.convert.column import shape_of
from diffit.convert.family import Published, Shapes
from diffit.convert.licences import UVIT
from diffit.diffusion.formulation import DDPMConfig, FormulationConfig, VPConfig
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.uvit import UViTConfig
from diffit.sampling import SamplingConfig

NETWORK = "uvit"
SOURCE = "baofff/U-ViT (March 2023)"
LICENCE = UVIT

HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}
"""Width of each published size to its heads, which the weights do not tell."""

LOWEST = 0.003178
"""The level of the VP SDE at time 1e-4, where the release ends sampling in continuous time."""

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


def recognises(names: Collection[str]) -> bool:
    """Blocks before, in and after the middle, and a linear layer that makes patches."""
    return {"in_blocks.0.attn.qkv.weight", "mid_block.norm1.weight", "decoder_pred.weight"} <= set(
        names
    )


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from shapes; those of ``facts`` win.

    A table of 1000 labels is taken for ImageNet's classes without one for "no class"; any other
    is taken to end with that one, unless ``facts`` name as many classes as it has rows.
    """
    width, channels, patch, _ = shape_of(shapes, "patch_embed.proj.weight", 4)
    rows = shape_of(shapes, "label_emb.weight", 2)[0] if "label_emb.weight" in shapes else -1
    cells = shape_of(shapes, "pos_embed", 3)[1] - (2 if rows > 0 else 1)
    heads = facts.get("num_heads") or HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"the weights do not tell the number of heads, and no published U-ViT has width "
            f"{width}; name it with --heads"
        )
    hidden = shape_of(shapes, "mid_block.mlp.fc1.weight", 2)[0]
    return {
        "img_size": math.isqrt(cells) * patch,
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": 2 * len({n.split(".")[1] for n in shapes if n.startswith("in_blocks.")}),
        "num_heads": heads,
        "mlp_ratio": hidden / width,
        "qkv_bias": "mid_block.attn.qkv.bias" in shapes,
        "mlp_time_embed": "time_embed.0.weight" in shapes,
        "num_classes": rows,
        "conv": "final_layer.weight" in shapes,
        "skip": "out_blocks.0.skip_linear.weight" in shapes,
        "null_class": rows not in (1000, facts.get("num_classes")),
    }


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


def published(config: UViTConfig) -> Published:
    """As the release samples: in pixels and for L by the VP SDE, for H in steps of diffusion."""
    discrete = config.channels == 4 and not config.conv
    formulation: FormulationConfig = VPConfig()
    if discrete:
        formulation = DDPMConfig(
            schedule="scaled-linear", interpolation="alpha", learned_variance=False, time="index1"
        )
    if not config.classes:
        sampling = SamplingConfig(sampler="pc", corrections=0, steps=1000)
    else:
        sampling = SamplingConfig(
            sampler="dpmpp-3s",
            levels="uniform",
            to_zero=False,
            sigma_min=None if discrete else LOWEST,
            steps=50,
            guidance={32: 1.4, 64: 1.7}.get(config.shape[1], 1.0) if config.null_class else 1.0,
        )
    return Published(formulation, sampling, _codec(config.channels))


def _codec(channels: int) -> CodecConfig:
    """Stable Diffusion's autoencoder for 4 channels; the release rounds to the nearest byte."""
    if channels != 4:
        return PixelsConfig()
    return AutoencoderConfig(
        path="stabilityai/sd-vae-ft-ema", kind="kl", channels=4, factor=8, scale=0.18215, shift=0.0
    )


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """Section 3 and Figure 1 of the paper on the release's tensors."""
    given = Arguments.model_validate(args)
    tokens = plain.patches(state, "patch_embed.proj", x)
    level = plain.time_features(time, given.embed_dim).to(x)
    if given.mlp_time_embed:
        hidden = plain.silu(plain.linear(state, "time_embed.0", level))
        level = plain.linear(state, "time_embed.2", hidden)
    tokens = torch.cat([level[:, None], tokens], dim=1)
    if given.num_classes > 0:
        row = plain.table_rows(state, "label_emb", label, x)
        tokens = torch.cat([row[:, None], tokens], dim=1)
    tokens = tokens + state["pos_embed"].to(x)
    kept = []
    for i in range(given.depth // 2):
        tokens = _plain_block(state, f"in_blocks.{i}", given, tokens)
        kept.append(tokens)
    tokens = _plain_block(state, "mid_block", given, tokens)
    for i in range(given.depth // 2):
        if given.skip:
            both = torch.cat([tokens, kept.pop()], dim=-1)
            tokens = plain.linear(state, f"out_blocks.{i}.skip_linear", both)
        tokens = _plain_block(state, f"out_blocks.{i}", given, tokens)
    tokens = plain.linear(state, "decoder_pred", plain.affine_norm(state, "norm", tokens))
    tokens = tokens[:, 2 if given.num_classes > 0 else 1 :]
    image = plain.images(tokens, given.patch_size)
    if not given.conv:
        return image
    weight, bias = state["final_layer.weight"].to(x), state["final_layer.bias"].to(x)
    return F.conv2d(image, weight, bias, padding=1)


def _plain_block(state: plain.State, name: str, args: Arguments, tokens: Tensor) -> Tensor:
    qkv = plain.linear(state, f"{name}.attn.qkv", plain.affine_norm(state, f"{name}.norm1", tokens))
    q, k, v = (plain.heads_of(part, args.num_heads) for part in qkv.chunk(3, dim=-1))
    mixed = plain.joined(plain.attention(q, k, v))
    tokens = tokens + plain.linear(state, f"{name}.attn.proj", mixed)
    hidden = plain.linear(
        state, f"{name}.mlp.fc1", plain.affine_norm(state, f"{name}.norm2", tokens)
    )
    return tokens + plain.linear(state, f"{name}.mlp.fc2", plain.gelu(hidden))
