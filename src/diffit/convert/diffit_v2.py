"""Latent DiffiT of dkagramanyan/DiffiT-v2, from its change of 19 April 2026 on.

Rotary embedding in place of position table and biases, norms of queries and keys, RMS norm without
weights, SwiGLU. Earlier checkpoints of that code are of family `diffit`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from diffit.convert import column, plain
from diffit.convert.family import Published, Shapes
from diffit.convert.licences import Licence
from diffit.diffusion.formulation import DDPMConfig
from diffit.errors import CheckpointError
from diffit.networks.latent_diffit import LatentDiffiTConfig

NETWORK = "latent-diffit"
SOURCE = "dkagramanyan/DiffiT-v2 (April 2026)"
LICENCE = Licence(
    name="unknown",
    note="weights trained with DiffiT-v2 have no common licence: ask those who trained them; the "
    "code itself is a derivative of NVIDIA's, for research and evaluation only",
)

EXTRA = {"position": "rotary", "qk_norm": True, "mlp": "swiglu", "norm": "rms"}
"""Our settings that make a latent DiffiT one of v2."""


def recognises(names: Collection[str]) -> bool:
    """TMSA's time projection beside norms of queries and keys."""
    return {"blocks.0.attn.q_norm.weight", "blocks.0.attn.qkv_temb.weight"} <= set(names)


def infer(shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments; the size of images is in no tensor, since positions are computed."""
    head = column.shape_of(shapes, "blocks.0.attn.q_norm.weight", 1)[0]
    width = column.shape_of(shapes, "x_embedder.proj.weight", 4)[0]
    if "input_size" not in facts:
        raise CheckpointError(
            "the weights of DiffiT-v2 do not tell the size of images they are for; name it with "
            "--source-size, such as 256"
        )
    return column.infer(shapes, facts, heads=max(width // head, 1))


def config(args: Mapping[str, Any]) -> LatentDiffiTConfig:
    """Our configuration for the constructor arguments of v2."""
    return column.build(LatentDiffiTConfig, args, family="diffit-v2", extra=EXTRA)


def arguments(config: LatentDiffiTConfig) -> dict[str, Any]:
    """The constructor arguments of v2 for our configuration."""
    return column.arguments(config, family="diffit-v2", extra=EXTRA)


def names(config: LatentDiffiTConfig) -> dict[str, str]:
    """Our name of each tensor to that of v2; it stores no rotary tables."""
    inside = column.ATTENTION | {
        "attention.qkv_time": "attn.qkv_temb",
        "mlp.gate": "mlp.gate",
        "mlp.up": "mlp.up",
        "mlp.down": "mlp.down",
    }
    norms = {
        f"column.{i}.attention.{norm}.weight": f"blocks.{i}.attn.{norm}.weight"
        for i in range(config.depth)
        for norm in ("q_norm", "k_norm")
    }
    return column.names(config.depth, inside, column.AROUND) | norms


def shapes(config: LatentDiffiTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes in v2 of tensors that we keep in another one, by our name."""
    return column.shapes(config)


def derived(config: LatentDiffiTConfig) -> dict[str, Tensor]:
    """None: v2 stores weights alone."""
    return {}


def published(config: LatentDiffiTConfig) -> Published:
    """As v2 samples: its guidance acts on all channels, else as the release."""
    if max(config.shape[1:]) <= 32:
        guidance = {"guidance": 4.4, "guidance_schedule": "power-cosine", "guidance_power": 4.0}
    else:
        guidance = {"guidance": 1.49}
    return Published(
        formulation=DDPMConfig(learned_variance=config.learned_variance),
        sampling=column.sampling(config, **guidance),
        codec=column.codec(config.channels),
    )


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """TMSA with rotary embedding, as the code of v2 has it, on its tensors."""
    tokens = plain.patches(state, "x_embedder.proj", x)
    c = column.condition(state, time, label, x)
    side = args["input_size"] // args["patch_size"]
    for i in range(args["depth"]):
        block = f"blocks.{i}"
        qkv = plain.linear(state, f"{block}.attn.qkv", plain.rms_norm(tokens))
        qkv = qkv + plain.linear(state, f"{block}.attn.qkv_temb", c)[:, None]
        q, k, v = (plain.heads_of(part, args["num_heads"]) for part in qkv.chunk(3, dim=-1))
        q = plain.rms_norm(q) * state[f"{block}.attn.q_norm.weight"].to(x)
        k = plain.rms_norm(k) * state[f"{block}.attn.k_norm.weight"].to(x)
        mixed = plain.joined(plain.attention(_turned(q, side), _turned(k, side), v))
        tokens = tokens + plain.linear(state, f"{block}.attn.proj", mixed)
        normed = plain.rms_norm(tokens)
        gate = plain.silu(plain.linear(state, f"{block}.mlp.gate", normed))
        hidden = gate * plain.linear(state, f"{block}.mlp.up", normed)
        tokens = tokens + plain.linear(state, f"{block}.mlp.down", hidden)
    last = plain.linear(state, "final_layer.linear", plain.silu(plain.rms_norm(tokens)))
    return plain.images(last, args["patch_size"])


def _turned(x: Tensor, side: int) -> Tensor:
    """(B, H, N, d): the first half of d turned by the row, the second by the column.

    Tables are rounded to float32, as ours are.
    """
    quarter = x.shape[-1] // 4
    omega = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    place = torch.arange(side * side)
    halves = []
    for half, line in zip(x.chunk(2, dim=-1), (place // side, place % side), strict=True):
        angle = torch.cat([line[:, None] * omega] * 2, dim=-1)
        swapped = torch.cat([-half[..., quarter:], half[..., :quarter]], dim=-1)
        halves.append(half * angle.cos().float().to(x) + swapped * angle.sin().float().to(x))
    return torch.cat(halves, dim=-1)
