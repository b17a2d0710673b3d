"""DiMR of qihao067/DiMR, the release of September 2024."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from diffit.config import Settings, parse
from diffit.convert import column
from diffit.convert.dimr_plain import plain_forward as plain_forward
from diffit.convert.family import Published, Shapes
from diffit.convert.licences import DIMR
from diffit.diffusion.formulation import DDPMConfig, VPConfig
from diffit.errors import CheckpointError, ConfigError
from diffit.networks.dimr import DiMRConfig
from diffit.nn.time_norm import TimeNormKind
from diffit.sampling import SamplingConfig

NETWORK = "dimr"
SOURCE = "qihao067/DiMR (September 2024)"
LICENCE = DIMR

HEADS = {768: 12, 960: 16, 1152: 16}
"""Width of the coarsest branch of each published size to its heads, which the weights do not tell.

Those of 960 (XL) and 1152 (G) are in the release; those of 768 (M) are U-ViT-M's, inferred."""

NORMS: dict[str, TimeNormKind] = {"TDRMSN": "td-rms", "LN": "td-ln"}
"""The reference's name of a norm to ours; its `LN` depends on the time too."""

NORM_TENSORS = {
    "scale.param0": "TDRMSN",
    "weight.param0": "LN",
    "linear.weight": "ADARMSN",
    "scale": "RMSN",
}
"""A tensor of a block's norm to the reference's name of the norm."""

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


def recognises(names: Collection[str]) -> bool:
    """Stages that patch the image, the first of transformer blocks."""
    return {
        "stages.0.input_layer.1.weight", "stages.0.blocks.0.block1.query_key_value.weight"
    } <= set(names)  # fmt: skip


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from shapes, for square images; all can be seen but the heads."""
    count = column.depth_of(shapes, "stages.")
    stages = [_infer_stage(shapes, f"stages.{place}") for place in range(count)]
    width = stages[0]["dim"]
    heads = facts.get("num_heads") or HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"the weights do not tell the number of heads, and no published DiMR has width {width} "
            "in its first branch; name it with --heads"
        )
    norm = "stages.0.blocks.0.block1.norm."
    kinds = [kind for part, kind in NORM_TENSORS.items() if norm + part in shapes]
    if not kinds:
        raise CheckpointError(f"the checkpoint lacks {norm}scale.param0; it is damaged")
    return {
        "channels": column.shape_of(shapes, "stages.0.input_layer.1.weight", 4)[1],
        "norm_type": kinds[0],
        "num_classes": column.shape_of(shapes, "stages.0.class_embeds.weight", 2)[0],
        "stage_configs": [stages[0] | {"num_attention_heads": heads}, *stages[1:]],
    }


def _infer_stage(shapes: Shapes, name: str) -> dict[str, Any]:
    width, _, stride, _ = column.shape_of(shapes, f"{name}.input_layer.1.weight", 4)
    cells = column.shape_of(shapes, f"{name}.input_layer.3.position_embeddings.weight", 2)[0]
    convolution = f"{name}.blocks.0.block1.1.weight"
    found = {
        "block_type": "TransformerBlock",
        "dim": width,
        "hidden_dim": column.shape_of(shapes, f"{name}.blocks.0.block2.w0.weight", 2)[0],
        "num_blocks": column.depth_of(shapes, f"{name}.blocks."),
        "max_height": math.isqrt(cells),
        "max_width": math.isqrt(cells),
        "input_feature_ratio": stride,
        "final_kernel_size": column.shape_of(shapes, f"{name}.output_layer.2.weight", 4)[-1],
    }
    if convolution not in shapes:
        return found
    kernel = column.shape_of(shapes, convolution, 4)[-1]
    return found | {"block_type": "ConvNeXtBlock", "kernel_size": kernel}


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
    for branch, width in enumerate(config.widths):
        if round(width * config.mlp_ratio) != width * config.mlp_ratio:
            raise ValueError(f"the code of dimr has no hidden units like those of branch {branch}")
    if not config.classes or not config.null_class:
        raise ValueError("the code of dimr has a row for each class and one for no class")
    if config.learned_variance or config.dropout_at != "hidden":
        raise ValueError("the code of dimr has no learned variance and no dropout of branches")
    if config.tau != (0.25, 0.0):
        raise ValueError("the code of dimr tells its norms a quarter of the time, nothing else")
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
        for branch, width in enumerate(config.widths)
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


def published(config: DiMRConfig) -> Published:
    """As the release evaluates latents; in pixels, by the VP SDE as U-ViT at 64 pixels."""
    solver: dict[str, Any] = {"sampler": "dpmpp-3s", "levels": "uniform", "to_zero": False}
    codec = column.codec(config.channels, "nearest")
    if config.channels != 4:
        return Published(VPConfig(time="log_snr"), SamplingConfig(**solver, steps=50), codec)
    formulation = DDPMConfig(
        schedule="scaled-linear", interpolation="alpha", learned_variance=False, time="dimr"
    )
    # The release's 0.4 is counted from the conditional prediction.
    sampling = SamplingConfig(**solver, steps=250, guidance=1.4)
    return Published(formulation, sampling, codec)


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
