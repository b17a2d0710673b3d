"""DiT as diffusers keeps it: `DiTTransformer2DModel`, once `Transformer2DModel`.

It computes another function of the same weights than facebookresearch/DiT: its time features have
the frequencies 10000^(-k / 127) where DiT's have 10000^(-k / 128), and `norm_eps`, 1e-5 unless its
configuration says otherwise, in the norm before the MLP where DiT has 1e-6. This family keeps to
what diffusers computes; `to_dit` gives the same weights to family `dit`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from diffit.config import Settings, parse
from diffit.convert import column, plain
from diffit.convert.dit import LICENCE as DIT_LICENCE
from diffit.convert.family import Published, Shapes
from diffit.diffusion.formulation import DDPMConfig
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.dit import DiTConfig
from diffit.sampling import SamplingConfig

NETWORK = "dit"
SOURCE = "DiTTransformer2DModel of diffusers"
LICENCE = DIT_LICENCE
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
"""What its `config.json` names as class."""

EMBEDDER = {
    "time.hidden": "emb.timestep_embedder.linear_1",
    "time.out": "emb.timestep_embedder.linear_2",
}
LABEL = "emb.class_embedder.embedding_table.weight"


class Arguments(Settings):
    """Arguments of diffusers' constructor that make a DiT; the rest is checked and dropped."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    sample_size: int = 32
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000
    norm_eps: float = 1e-5


FIXED = {
    "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True,
    "norm_elementwise_affine": False,
}  # fmt: skip
"""Values of other arguments that a DiT must have."""


def recognises(names: Collection[str]) -> bool:
    """Blocks of diffusers, each with its own embedding of time and class."""
    return {
        "transformer_blocks.0.attn1.to_q.weight",
        f"transformer_blocks.0.norm1.{LABEL}",
    } <= set(names)


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments, from `config.json` where there is one, else from the shapes."""
    given = dict(facts.get("config") or {})
    for key, value in FIXED.items():
        if given.get(key, value) != value:
            raise CheckpointError(
                f"{key} of this transformer is {given[key]!r}; a DiT has {value!r}"
            )
    width, channels, patch, _ = column.shape_of(shapes, "pos_embed.proj.weight", 4)
    outputs = column.shape_of(shapes, "proj_out_2.weight", 2)[0]
    heads = facts.get("num_heads") or given.get("num_attention_heads") or column.usual_heads(width)
    size = facts.get("input_size") or given.get("sample_size")
    if size is None:
        raise CheckpointError(
            "the weights of a DiT of diffusers do not tell the size of images they are for; name "
            "it with --source-size, such as 256, or keep config.json beside them"
        )
    known = {k: given[k] for k in ("norm_eps",) if k in given}
    return {
        "num_attention_heads": heads,
        "attention_head_dim": given.get("attention_head_dim") or width // max(heads, 1),
        "in_channels": channels,
        "out_channels": outputs // patch**2,
        "num_layers": column.depth_of(shapes, "transformer_blocks."),
        "sample_size": size,
        "patch_size": patch,
        "num_embeds_ada_norm": column.shape_of(shapes, f"transformer_blocks.0.norm1.{LABEL}", 2)[0]
        - 1,
        **known,
    }


def config(args: Mapping[str, Any]) -> DiTConfig:
    """Our configuration for the constructor arguments of diffusers."""
    try:
        given = parse(Arguments, args, source="arguments of diffusers-dit")
        outputs = given.out_channels or given.in_channels
        return parse(
            DiTConfig,
            {
                "size": given.sample_size,
                "patch": given.patch_size,
                "channels": given.in_channels,
                "width": given.num_attention_heads * given.attention_head_dim,
                "depth": given.num_layers,
                "heads": given.num_attention_heads,
                "classes": given.num_embeds_ada_norm,
                "learned_variance": column.learns_variance(outputs, given.in_channels),
                "time_embedding": "diffusers",
                "mlp_eps": given.norm_eps,
            },
            source="arguments of diffusers-dit",
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def arguments(config: DiTConfig) -> dict[str, Any]:
    """The constructor arguments of diffusers for our configuration."""
    channels, height, width = config.shape
    if height != width:
        raise ValueError(f"diffusers' DiT takes square images only, not {height} x {width}")
    if not (config.classes and config.null_class):
        raise ValueError("diffusers' DiT takes models with classes and a null class only")
    args = {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": channels,
        "out_channels": channels * (2 if config.learned_variance else 1),
        "num_layers": config.depth,
        "sample_size": height,
        "patch_size": config.patch,
        "num_embeds_ada_norm": config.classes,
        "norm_eps": config.mlp_eps,
    }
    again = parse(DiTConfig, _settings_of(args), source="arguments of diffusers-dit")
    for field in DiTConfig.model_fields:
        same = getattr(config, field) == getattr(again, field)
        if not same and field not in ("size", "dropout", "dropout_at"):
            raise ValueError(f"diffusers' DiT has no setting like {field} of this network")
    return args


def _settings_of(args: Mapping[str, Any]) -> dict[str, Any]:
    return config(args).model_dump()


def names(config: DiTConfig) -> dict[str, str | tuple[str, ...]]:
    """Our name of each tensor to that of diffusers, which keeps q, k and v apart."""
    found: dict[str, str | tuple[str, ...]] = {}
    for kind in ("weight", "bias"):
        for i in range(config.depth):
            ours, theirs = f"column.{i}", f"transformer_blocks.{i}"
            found |= {
                f"{ours}.attention.qkv.{kind}": tuple(
                    f"{theirs}.attn1.to_{part}.{kind}" for part in "qkv"
                ),
                f"{ours}.attention.out.{kind}": f"{theirs}.attn1.to_out.0.{kind}",
                f"{ours}.mlp.up.{kind}": f"{theirs}.ff.net.0.proj.{kind}",
                f"{ours}.mlp.down.{kind}": f"{theirs}.ff.net.2.{kind}",
                f"{ours}.modulation.{kind}": f"{theirs}.norm1.linear.{kind}",
            }
        found |= {
            f"patch.{kind}": f"pos_embed.proj.{kind}",
            f"modulation.{kind}": f"proj_out_1.{kind}",
            f"head.{kind}": f"proj_out_2.{kind}",
        }
        found |= {
            f"{ours}.{kind}": f"transformer_blocks.0.norm1.{theirs}.{kind}"
            for ours, theirs in EMBEDDER.items()
        }
    return found | {"label.table.weight": f"transformer_blocks.0.norm1.{LABEL}"}


def shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in diffusers of tensors that we keep in another one, by our name."""
    return column.shapes(config)


def derived(config: DiTConfig) -> dict[str, Tensor]:
    """None: diffusers computes the position table anew."""
    return {}


def copies(config: DiTConfig) -> dict[str, str]:
    """Every block has an embedding of time and class of its own, all equal in released models."""
    embedders = [LABEL, *(f"{name}.{kind}" for name in EMBEDDER.values()
                          for kind in ("weight", "bias"))]  # fmt: skip
    return {
        f"transformer_blocks.{i}.norm1.{name}": f"transformer_blocks.0.norm1.{name}"
        for i in range(1, config.depth)
        for name in embedders
    }


def published(config: DiTConfig) -> Published:
    """As the pipeline of diffusers samples: 50 steps of DDIM, guidance 4 on all channels."""
    guidance = 4.0 if config.classes and config.null_class else 1.0
    return Published(
        formulation=DDPMConfig(learned_variance=config.learned_variance),
        sampling=SamplingConfig(sampler="ddim", steps=50, guidance=guidance),
        codec=column.codec(config.channels, rounding="nearest"),
    )


def to_dit(state: Mapping[str, Tensor], args: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """The tensors under the names of facebookresearch/DiT, and its constructor arguments."""
    from diffit.convert import dit
    from diffit.nn.embed import sincos_grid

    ours = config(args)
    target = {n: t for n, t in dit.names(ours).items() if n != "position"}
    source = names(ours)
    renamed = {theirs: _joined(state, source[name]) for name, theirs in target.items()}
    renamed["pos_embed"] = sincos_grid(ours.grid, ours.width)[None]
    settings = {"time_embedding": "dit", "mlp_eps": DiTConfig.model_fields["mlp_eps"].default}
    return renamed, dit.arguments(ours.model_copy(update=settings))


def _joined(state: Mapping[str, Tensor], name: str | tuple[str, ...]) -> Tensor:
    return state[name] if isinstance(name, str) else torch.cat([state[part] for part in name])


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """The forward pass of diffusers' transformer, block by block with each block's own embedder."""
    heads, patch = args["num_attention_heads"], args["patch_size"]
    tokens = plain.patches(state, "pos_embed.proj", x)
    tokens = tokens + _sincos(args["sample_size"] // patch, tokens.shape[-1]).to(x)
    features = plain.time_features(time, shift=1).to(x)
    c = torch.zeros(())
    for i in range(args["num_layers"]):
        block = f"transformer_blocks.{i}"
        hidden = plain.linear(state, f"{block}.norm1.emb.timestep_embedder.linear_1", features)
        c = plain.linear(state, f"{block}.norm1.emb.timestep_embedder.linear_2", plain.silu(hidden))
        c = c + state[f"{block}.norm1.{LABEL}"][label].to(x)
        modulation = plain.linear(state, f"{block}.norm1.linear", plain.silu(c))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        normed = plain.layer_norm(tokens) * (1 + scale1) + shift1
        q, k, v = (
            plain.heads_of(plain.linear(state, f"{block}.attn1.to_{part}", normed), heads)
            for part in "qkv"
        )
        mixed = plain.joined(plain.attention(q, k, v))
        tokens = tokens + gate1 * plain.linear(state, f"{block}.attn1.to_out.0", mixed)
        normed = plain.layer_norm(tokens, args.get("norm_eps", 1e-5)) * (1 + scale2) + shift2
        hidden = plain.gelu_tanh(plain.linear(state, f"{block}.ff.net.0.proj", normed))
        tokens = tokens + gate2 * plain.linear(state, f"{block}.ff.net.2", hidden)
        if i == 0:
            first = c
    shift, scale = plain.linear(state, "proj_out_1", plain.silu(first))[:, None].chunk(2, -1)
    return plain.images(
        plain.linear(state, "proj_out_2", plain.layer_norm(tokens) * (1 + scale) + shift), patch
    )


def _sincos(side: int, width: int) -> Tensor:
    """(N, C) sines and cosines of the column, then of the row, rounded to float32."""
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    place = torch.arange(side * side)
    column_angle, row_angle = ((place % side)[:, None] * omega, (place // side)[:, None] * omega)
    parts = [column_angle.sin(), column_angle.cos(), row_angle.sin(), row_angle.cos()]
    return torch.cat(parts, dim=-1).float()
