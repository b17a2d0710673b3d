"""DiT of facebookresearch/DiT (June 2023)."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from diffit.convert import column, plain
from diffit.convert.family import Published, Shapes
from diffit.convert.licences import META
from diffit.diffusion.formulation import DDPMConfig
from diffit.networks.dit import DiTConfig

NETWORK = "dit"
SOURCE = "facebookresearch/DiT (June 2023)"
LICENCE = META


def recognises(names: Collection[str]) -> bool:
    """Modulated blocks without a position bias (MDT has one) and without long skips."""
    wanted = {"blocks.0.adaLN_modulation.1.weight", "x_embedder.proj.weight", "pos_embed"}
    return wanted <= set(names) and "blocks.0.attn.relative_position_bias_table" not in names


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments; the number of heads is that of the published size of this width."""
    return column.infer(shapes, facts, heads=None)


def config(args: Mapping[str, Any]) -> DiTConfig:
    """Our configuration for the reference's constructor arguments."""
    return column.build(DiTConfig, args, family="dit")


def arguments(config: DiTConfig) -> dict[str, Any]:
    """The reference's constructor arguments for our configuration."""
    return column.arguments(config, family="dit")


def names(config: DiTConfig) -> dict[str, str]:
    """Our name of each tensor to the reference's."""
    inside = column.BLOCK | {"modulation": "adaLN_modulation.1"}
    outside = column.AROUND | {"modulation": "final_layer.adaLN_modulation.1"}
    return column.names(config.depth, inside, outside) | {"position": "pos_embed"}


def shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in the reference of tensors that we keep in another one, by our name."""
    return column.shapes(config)


def derived(config: DiTConfig) -> dict[str, Tensor]:
    """Nothing: every tensor of the reference is a weight."""
    return {}


def published(config: DiTConfig) -> Published:
    """As the release evaluates: guidance 1.5, on three channels."""
    return Published(
        formulation=DDPMConfig(learned_variance=config.learned_variance),
        sampling=column.sampling(config, guidance=1.5, guidance_channels=3),
        codec=column.codec(config.channels),
    )


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """adaLN-Zero (Section 3.2, Figure 3) on the reference's tensors."""
    tokens = plain.patches(state, "x_embedder.proj", x) + state["pos_embed"].to(x)
    c = plain.silu(column.condition(state, time, label, x))
    for i in range(args["depth"]):
        block = f"blocks.{i}"
        modulation = plain.linear(state, f"{block}.adaLN_modulation.1", c)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        qkv = plain.linear(
            state, f"{block}.attn.qkv", plain.layer_norm(tokens) * (1 + scale1) + shift1
        )
        q, k, v = (plain.heads_of(part, args["num_heads"]) for part in qkv.chunk(3, dim=-1))
        mixed = plain.joined(plain.attention(q, k, v))
        tokens = tokens + gate1 * plain.linear(state, f"{block}.attn.proj", mixed)
        hidden = plain.linear(
            state, f"{block}.mlp.fc1", plain.layer_norm(tokens) * (1 + scale2) + shift2
        )
        branch = plain.linear(state, f"{block}.mlp.fc2", plain.gelu_tanh(hidden))
        tokens = tokens + gate2 * branch
    shift, scale = plain.linear(state, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    last = plain.linear(state, "final_layer.linear", plain.layer_norm(tokens) * (1 + scale) + shift)
    return plain.images(last, args["patch_size"])
