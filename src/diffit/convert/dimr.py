"""DiMR of qihao067/DiMR, the release of September 2024."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffit.config import Settings, parse
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.dimr import DiMRConfig
from diffit.nn.time_norm import TimeNormKind

NETWORK = "dimr"

NORMS: dict[str, TimeNormKind] = {"TDRMSN": "td-rms", "LN": "td-ln"}
"""The reference's name of a norm to ours; its `LN` depends on the time too."""

TIME = {"high": "param0", "low": "param1", "slope": "nodecay_weight", "offset": "nodecay_bias"}
"""Our name of each part of a time-dependent vector to the reference's."""


class Stage(Settings):
    """One branch in the arguments of the reference, under its names."""

    block_type: str
    dim: int
    hidden_dim: int
    num_attention_heads: int = 1
    num_blocks: int
    max_height: int
    max_width: int
    image_input_ratio: int = 1
    input_feature_ratio: int
    final_kernel_size: int = 3
    kernel_size: int = 7
    dropout_prob: float = 0.0


class Arguments(Settings):
    """Arguments of the reference's constructor, under its names."""

    channels: int = 4
    block_grad_to_lowres: bool = False
    norm_type: str = "TDRMSN"
    num_classes: int = 1001
    stage_configs: tuple[Stage, ...]


def config(args: Mapping[str, Any]) -> DiMRConfig:
    """Our configuration for the reference's constructor arguments; CheckpointError for others."""
    source = "arguments of dimr"
    try:
        given = parse(Arguments, args, source=source)
        _refuse_unknown(given, source)
        return parse(DiMRConfig, _settings(given), source=source)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def arguments(config: DiMRConfig) -> dict[str, Any]:
    """The inverse of `config`; ValueError for what the reference cannot be."""
    last = len(config.widths) - 1
    for branch, width in enumerate(config.widths):
        if round(width * config.mlp_ratio) != width * config.mlp_ratio:
            raise ValueError(f"the code of dimr has no hidden units like those of branch {branch}")
    if not config.classes or not config.null_class:
        raise ValueError("the code of dimr has a row for each class and one for no class")
    if config.learned_variance or config.dropout_at != "hidden":
        raise ValueError("the code of dimr has no learned variance and no dropout of branches")
    stages = [
        {
            "block_type": "ConvNeXtBlock" if branch else "TransformerBlock",
            "dim": width,
            "hidden_dim": round(width * config.mlp_ratio),
            "num_blocks": config.depths[branch],
            "max_height": config.grid(branch)[0],
            "max_width": config.grid(branch)[1],
            "image_input_ratio": 1,
            "input_feature_ratio": config.stride(branch),
            "final_kernel_size": 3,
            "dropout_prob": config.dropout,
            **({"kernel_size": config.kernel} if branch else {"num_attention_heads": config.heads}),
        }
        for branch, width in enumerate(config.widths[: last + 1])
    ]
    return {
        "channels": config.channels,
        "block_grad_to_lowres": False,
        "norm_type": next(theirs for theirs, ours in NORMS.items() if ours == config.norm),
        "num_classes": config.classes + 1,
        "stage_configs": stages,
    }


def names(config: DiMRConfig) -> dict[str, str]:
    """Our name of each tensor to the reference's."""
    found: dict[str, str] = {}
    for branch in range(len(config.widths)):
        inside = _branch(config, branch)
        found |= {f"branches.{branch}.{ours}": f"stages.{branch}.{inside[ours]}" for ours in inside}
    return found


def shapes(config: DiMRConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    return {
        f"branches.{k}.patch.weight": (width, config.channels, config.stride(k), config.stride(k))
        for k, width in enumerate(config.widths)
    }


def derived(config: DiMRConfig) -> dict[str, Tensor]:
    """Nothing: every tensor of the reference is a weight."""
    return {}


def _branch(config: DiMRConfig, branch: int) -> dict[str, str]:
    half = config.depths[branch] // 2
    found = {"position.table": "input_layer.3.position_embeddings.weight"}
    found |= _layer("patch", "input_layer.1") | _layer("head", "output_layer.2")
    found |= _norm("norm", "output_layer.0", "td-ln")
    if branch:
        found |= _norm("upsample.norm1", "upsample.0", "td-ln")
        found |= _layer("upsample.reduce", "upsample.1.kernel")
        found |= _norm("upsample.norm2", "upsample.2", "td-ln")
    else:
        found["label.table.weight"] = "class_embeds.weight"
    for i in range(2 * half + 1):
        ours, theirs = f"column.{i}", f"blocks.{i}"
        if branch:
            found |= _layer(f"{ours}.conv", f"{theirs}.block1.1")
        else:
            found |= _norm(f"{ours}.norm1", f"{theirs}.block1.norm", config.norm)
            found[f"{ours}.attention.qkv.weight"] = f"{theirs}.block1.query_key_value.weight"
            found |= _layer(f"{ours}.attention.out", f"{theirs}.block1.dense")
        found |= _norm(f"{ours}.norm2", f"{theirs}.block2.norm", config.norm)
        for layer, name in (("gate", "w0"), ("up", "w1"), ("down", "w2")):
            found |= _layer(f"{ours}.glu.{layer}", f"{theirs}.block2.{name}")
    for i in range(half):
        found |= _layer(f"merge.{i}", f"skip_denses.{i}")
    return found


def _layer(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


def _norm(ours: str, theirs: str, kind: TimeNormKind) -> dict[str, str]:
    parts = {"scale": "scale"} if kind == "td-rms" else {"scale": "weight", "shift": "bias"}
    return {
        f"{ours}.{part}.{mine}": f"{theirs}.{name}.{other}"
        for part, name in parts.items()
        for mine, other in TIME.items()
    }


def _settings(args: Arguments) -> dict[str, Any]:
    stages = args.stage_configs
    first, finest = stages[0], stages[-1]
    return {
        "size": (finest.max_height, finest.max_width)
        if finest.max_height != finest.max_width
        else finest.max_height,
        "channels": args.channels,
        "classes": args.num_classes - 1,
        "widths": [stage.dim for stage in stages],
        "depths": [stage.num_blocks for stage in stages],
        "heads": first.num_attention_heads,
        "mlp_ratio": first.hidden_dim / first.dim,
        "kernel": finest.kernel_size,
        "norm": NORMS[args.norm_type],
        "dropout": first.dropout_prob,
    }


def _refuse_unknown(args: Arguments, source: str) -> None:
    """CheckpointError for what this library's DiMR is not."""
    if args.norm_type not in NORMS:
        raise CheckpointError(
            f"{source}: norm_type {args.norm_type!r} is none of {', '.join(NORMS)}"
        )
    if not args.stage_configs:
        raise CheckpointError(f"{source}: stage_configs is empty")
    if args.num_classes < 2:
        raise CheckpointError(f"{source}: num_classes must be at least 2, the last for no class")
    finest, count = args.stage_configs[-1], len(args.stage_configs)
    for place, stage in enumerate(args.stage_configs):
        stride = 1 << (count - 1 - place)
        expected = {
            "block_type": "ConvNeXtBlock" if place else "TransformerBlock",
            "max_height": finest.max_height // stride,
            "max_width": finest.max_width // stride,
            "input_feature_ratio": stride,
            "image_input_ratio": 1,
            "final_kernel_size": 3,
            "kernel_size": finest.kernel_size if place else stage.kernel_size,
            "hidden_dim": stage.dim * args.stage_configs[0].hidden_dim // args.stage_configs[0].dim,
            "dropout_prob": args.stage_configs[0].dropout_prob,
        }
        for name, value in expected.items():
            if getattr(stage, name) != value:
                raise CheckpointError(
                    f"{source}: stage {place} has {name} {getattr(stage, name)}; this library "
                    f"knows DiMR with {value} there"
                )
