"""Large-DiT of Alpha-VLLM/LLaMA2-Accessory (Large-DiT-ImageNet), on which TerDiT was written."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from diffit.config import Settings, parse
from diffit.convert import column, plain
from diffit.convert.family import Published, Shapes
from diffit.convert.licences import UNKNOWN
from diffit.diffusion.formulation import DDPMConfig
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.large_dit import LargeDiTConfig

NETWORK = "large-dit"
SOURCE = "Alpha-VLLM/LLaMA2-Accessory (Large-DiT-ImageNet)"
LICENCE = UNKNOWN

HEADS = {1536: 32, 3072: 32, 4096: 32}
"""Width of each published size to its heads, which the weights do not tell."""

ATTENTION = {"query": "wq", "key": "wk", "value": "wv", "out": "wo"}
SWIGLU = {"gate": "w1", "down": "w2", "up": "w3"}
"""Our name of each layer to the reference's; w2(silu(w1 x) * w3 x)."""

Matrix = Callable[[plain.State, str], Tensor]
"""(tensors, layer) to its (out, in) weights, of which plain formulas are made."""


class Arguments(Settings):
    """Arguments of the reference's constructor, under its names, with its defaults."""

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True
    qk_norm: bool = False


def recognises(names: Collection[str]) -> bool:
    """LLaMA's layers, modulated, without the norm and the scales of TerDiT."""
    wanted = {"layers.0.attention.wq.weight", "layers.0.adaLN_modulation.1.weight"}
    return wanted <= set(names) and "layers.0.adaLN_modulation.2.weight" not in names


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from shapes; the size of images is in no tensor."""
    return arguments_in(shapes, facts, hidden=_outputs(shapes, "w1"))


def arguments_in(shapes: Shapes, facts: Mapping[str, Any], *, hidden: int) -> dict[str, Any]:
    """`infer` for layers of so many hidden units, however they are stored."""
    width, values = column.shape_of(shapes, "x_embedder.weight", 2)
    known = {key: value for key, value in facts.items() if key in Arguments.model_fields}
    if "input_size" not in known:
        raise CheckpointError(
            "the weights do not tell the size of images they are for; name it with --source-size, "
            "such as 256"
        )
    heads = facts.get("num_heads") or HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            "the weights do not tell the number of heads, and no published size has width "
            f"{width}; name it with --heads"
        )
    return {
        "patch_size": 2,
        "in_channels": max(values // 4, 1),
        "dim": width,
        "n_layers": column.depth_of(shapes, "layers."),
        "n_heads": heads,
        "num_classes": column.shape_of(shapes, "y_embedder.embedding_table.weight", 2)[0] - 1,
        "class_dropout_prob": 0.1,
        "learn_sigma": column.learns_variance(
            column.shape_of(shapes, "final_layer.linear.weight", 2)[0], values
        ),
        "qk_norm": "layers.0.attention.q_norm.weight" in shapes,
        **_hidden(width, hidden),
        **known,
    }


def config(args: Mapping[str, Any]) -> LargeDiTConfig:
    """Our configuration for the reference's constructor arguments; CheckpointError for others."""
    return build(args, family="large-dit", modulation_norm=False)


def build(args: Mapping[str, Any], *, family: str, modulation_norm: bool) -> LargeDiTConfig:
    """`config`, for the code of ``family``."""
    source = f"arguments of {family}"
    try:
        given = parse(Arguments, args, source=source)
        _refuse_unknown(given, source)
        settings = _settings(given) | {"modulation_norm": modulation_norm}
        return parse(LargeDiTConfig, settings, source=source)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def arguments(config: LargeDiTConfig) -> dict[str, Any]:
    """The inverse of `config`; ValueError for what the reference cannot be."""
    return arguments_of(config, family="large-dit", modulation_norm=False)


def arguments_of(config: LargeDiTConfig, *, family: str, modulation_norm: bool) -> dict[str, Any]:
    """`arguments`, for the code of ``family``."""
    channels, height, width = config.shape
    if height != width:
        raise ValueError(f"the code of {family} takes square images only, not {height} x {width}")
    if not config.classes:
        raise ValueError(f"the code of {family} takes models with classes only")
    multiplier = config.mlp_ratio / 4
    args = Arguments(
        input_size=height,
        patch_size=config.patch,
        in_channels=channels,
        dim=config.width,
        n_layers=config.depth,
        n_heads=config.heads,
        multiple_of=config.hidden_multiple,
        ffn_dim_multiplier=None if multiplier == 1 else multiplier,
        class_dropout_prob=0.1 if config.null_class else 0.0,
        num_classes=config.classes,
        learn_sigma=config.learned_variance,
        qk_norm=config.qk_norm,
    )
    again = build(args.model_dump(), family=family, modulation_norm=modulation_norm)
    for field in type(config).model_fields:
        # Dropout acts in training alone: it changes no weights.
        same = getattr(config, field) == getattr(again, field)
        if not same and field not in ("size", "dropout", "dropout_at"):
            raise ValueError(f"the code of {family} has no setting like {field} of this network")
    return args.model_dump()


def names(config: LargeDiTConfig) -> dict[str, str]:
    """Our name of each tensor to the reference's."""
    found = {
        f"{layer}.{kind}": f"{theirs}.{kind}"
        for layer, theirs in _around().items()
        for kind in ("weight", "bias")
    } | {"label.table.weight": "y_embedder.embedding_table.weight"}
    for layer, theirs in matrices(config).items():
        found[f"{layer}.weight"] = f"{theirs}.weight"
    for i in range(config.depth):
        ours, theirs = f"column.{i}", f"layers.{i}"
        found[f"{ours}.modulation.bias"] = f"{theirs}.adaLN_modulation.1.bias"
        found[f"{ours}.norm1.weight"] = f"{theirs}.attention_norm.weight"
        found[f"{ours}.norm2.weight"] = f"{theirs}.ffn_norm.weight"
        for norm in ("q_norm", "k_norm"):
            for kind in ("weight", "bias"):
                found[f"{ours}.attention.{norm}.{kind}"] = f"{theirs}.attention.{norm}.{kind}"
    return found


def matrices(config: LargeDiTConfig) -> dict[str, str]:
    """Our name of each linear layer in the blocks to the reference's."""
    found = {}
    for i in range(config.depth):
        ours, theirs = f"column.{i}", f"layers.{i}"
        found[f"{ours}.modulation"] = f"{theirs}.adaLN_modulation.1"
        found |= {f"{ours}.attention.{a}": f"{theirs}.attention.{b}" for a, b in ATTENTION.items()}
        found |= {f"{ours}.mlp.{a}": f"{theirs}.feed_forward.{b}" for a, b in SWIGLU.items()}
    return found


def shapes(config: LargeDiTConfig) -> dict[str, tuple[int, ...]]:
    """None: all tensors are of our shapes."""
    return {}


def derived(config: LargeDiTConfig) -> dict[str, Tensor]:
    """Nothing: the reference stores weights alone."""
    return {}


def published(config: LargeDiTConfig) -> Published:
    """As the releases evaluate: guidance 1.5, on three channels."""
    return Published(
        formulation=DDPMConfig(learned_variance=config.learned_variance),
        sampling=column.sampling(config, guidance=1.5, guidance_channels=3),
        codec=column.codec(config.channels),
    )


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """The forward pass on the reference's tensors."""
    return forward_with(dense, state, args, x, time, label)


def dense(state: plain.State, name: str) -> Tensor:
    """The weights of a layer as they are."""
    return state[f"{name}.weight"]


def forward_with(
    matrix: Matrix,
    state: plain.State,
    args: Mapping[str, Any],
    x: Tensor,
    time: Tensor,
    label: Tensor,
) -> Tensor:
    """The forward pass with the blocks' matrices as ``matrix`` reads them."""
    given = Arguments.model_validate(args)
    tokens = plain.linear(state, "x_embedder", _patches(x, given.patch_size))
    c = plain.silu(column.condition(state, time, label, x))
    for i in range(given.n_layers):
        tokens = _block(matrix, state, f"layers.{i}", given, tokens, c)
    shift, scale = plain.linear(state, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    last = plain.linear(state, "final_layer.linear", plain.layer_norm(tokens) * (1 + scale) + shift)
    return plain.images(last, given.patch_size)


def _block(
    matrix: Matrix, state: plain.State, name: str, args: Arguments, tokens: Tensor, c: Tensor
) -> Tensor:
    def linear(layer: str, x: Tensor) -> Tensor:
        return x @ matrix(state, f"{name}.{layer}").to(x).mT

    def normed(layer: str, x: Tensor) -> Tensor:
        return plain.rms_norm(x, 1e-5) * state[f"{name}.{layer}.weight"].to(x)

    made = linear("adaLN_modulation.1", c) + state[f"{name}.adaLN_modulation.1.bias"].to(c)
    if f"{name}.adaLN_modulation.2.weight" in state:
        made = normed("adaLN_modulation.2", made)
    shift1, scale1, gate1, shift2, scale2, gate2 = made[:, None].chunk(6, dim=-1)
    branch = normed("attention_norm", tokens) * (1 + scale1) + shift1
    q, k, v = (linear(f"attention.{layer}", branch) for layer in ("wq", "wk", "wv"))
    if args.qk_norm:
        q = plain.affine_norm(state, f"{name}.attention.q_norm", q)
        k = plain.affine_norm(state, f"{name}.attention.k_norm", k)
    q, k, v = (plain.heads_of(part, args.n_heads) for part in (q, k, v))
    mixed = plain.joined(plain.attention(_turned(q), _turned(k), v))
    tokens = tokens + gate1 * linear("attention.wo", mixed)
    branch = normed("ffn_norm", tokens) * (1 + scale2) + shift2
    hidden = plain.silu(linear("feed_forward.w1", branch)) * linear("feed_forward.w3", branch)
    return tokens + gate2 * linear("feed_forward.w2", hidden)


def _turned(x: Tensor) -> Tensor:
    """(B, H, N, d) as d / 2 complex numbers, token n turned by n 10000^(-2k/d).

    The table is rounded to float32, as ours is.
    """
    half = x.shape[-1] // 2
    place = torch.arange(x.shape[-2], dtype=torch.float64)[:, None]
    angle = place * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.complex(angle.cos().float().to(x), angle.sin().float().to(x))
    pairs = torch.complex(x[..., 0::2], x[..., 1::2]) * turn
    return torch.stack([pairs.real, pairs.imag], dim=-1).reshape(x.shape)


def _patches(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) to (B, N, C p p), channel, row, column inside."""
    cells = x.unfold(2, p, p).unfold(3, p, p)  # (B, C, rows, columns, p, p)
    return torch.einsum("bcyxpq->byxcpq", cells).reshape(len(x), -1, x.shape[1] * p * p)


def _around() -> dict[str, str]:
    return column.AROUND | {
        "patch": "x_embedder",
        "modulation": "final_layer.adaLN_modulation.1",
    }


def _outputs(shapes: Shapes, layer: str) -> int:
    return column.shape_of(shapes, f"layers.0.feed_forward.{layer}.weight", 2)[0]


def _hidden(width: int, hidden: int) -> dict[str, Any]:
    """Arguments with which the reference rounds to so many hidden units."""
    plain_units = int(8 * width / 3)
    for multiple in (256 >> k for k in range(9)):
        if math.ceil(plain_units / multiple) * multiple == hidden:
            return {"multiple_of": multiple}
    return {"multiple_of": 1, "ffn_dim_multiplier": (hidden + 0.5) / plain_units}


def _settings(args: Arguments) -> dict[str, Any]:
    return {
        "size": args.input_size,
        "patch": args.patch_size,
        "channels": args.in_channels,
        "width": args.dim,
        "depth": args.n_layers,
        "heads": args.n_heads,
        "mlp_ratio": 4 * (1.0 if args.ffn_dim_multiplier is None else args.ffn_dim_multiplier),
        "hidden_multiple": args.multiple_of,
        "classes": args.num_classes,
        "learned_variance": args.learn_sigma,
        "null_class": args.class_dropout_prob > 0,
        "qk_norm": args.qk_norm,
    }


def _refuse_unknown(args: Arguments, source: str) -> None:
    """CheckpointError for what this library's Large-DiT is not."""
    if args.num_classes < 1:
        raise CheckpointError(f"{source}: num_classes must be at least 1")
    if args.n_kv_heads not in (None, args.n_heads):
        raise CheckpointError(
            f"{source}: n_kv_heads {args.n_kv_heads}; this library knows as many heads of keys "
            "and values as of queries"
        )
    if args.norm_eps != 1e-5:
        raise CheckpointError(f"{source}: norm_eps {args.norm_eps:g}; this library knows 1e-05")
