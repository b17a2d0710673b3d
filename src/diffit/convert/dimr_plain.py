"""The formulas of DiMR (arXiv:2406.09416) as they stand, on the tensors of its release."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.convert import plain

Stage = Mapping[str, Any]
"""One branch in the arguments of the reference, under its names."""


def plain_forward(
    state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor, label: Tensor
) -> Tensor:
    """The prediction of the last stage, by the paper's formulas on the release's tensors."""
    tau, features = (time / 4).to(x), [x]
    for place, stage in enumerate(args["stage_configs"]):
        name = f"stages.{place}"
        tokens = plain.patches(state, f"{name}.input_layer.1", x)
        tokens = tokens + state[f"{name}.input_layer.3.position_embeddings.weight"].to(x)
        if place:
            tokens = tokens + _upsampled(state, f"{name}.upsample", stage, features, tau)
        else:
            row = plain.table_rows(state, f"{name}.class_embeds", label, x)
            tokens = torch.cat([row[:, None], tokens], dim=1)
        features = [
            # The class token is the first, and stays behind.
            each[:, -stage["max_height"] * stage["max_width"] :]
            for each in _column(state, name, stage, tokens, tau)
        ]
    last = _layer_norm(state, f"{name}.output_layer.0", features[-1], tau)
    weight, bias = (state[f"{name}.output_layer.2.{kind}"].to(x) for kind in ("weight", "bias"))
    return F.conv2d(_map(last, stage), weight, bias, padding=weight.shape[-1] // 2)


def _upsampled(
    state: plain.State, name: str, stage: Stage, features: list[Tensor], tau: Tensor
) -> Tensor:
    above = _layer_norm(state, f"{name}.0", torch.cat(features, dim=-1), tau)
    cells = plain.linear(state, f"{name}.1.kernel", above)
    coarse = stage["max_height"] // 2, stage["max_width"] // 2
    cells = cells.reshape(len(above), *coarse, 2, 2, stage["dim"])
    fine = torch.einsum("byxpqc->bypxqc", cells).reshape(len(above), -1, stage["dim"])
    return _layer_norm(state, f"{name}.2", fine, tau)


def _column(
    state: plain.State, name: str, stage: Stage, tokens: Tensor, tau: Tensor
) -> list[Tensor]:
    """What enters the blocks, and the output of each."""
    half, outputs, skips = stage["num_blocks"] // 2, [tokens], list[Tensor]()
    for i in range(2 * half + 1):
        if i > half:
            both = torch.cat([tokens, skips.pop()], dim=-1)
            tokens = plain.linear(state, f"{name}.skip_denses.{i - half - 1}", both)
        tokens = _block(state, f"{name}.blocks.{i}", stage, tokens, tau)
        skips += [tokens] if i < half else []
        outputs.append(tokens)
    return outputs


def _block(state: plain.State, name: str, stage: Stage, tokens: Tensor, tau: Tensor) -> Tensor:
    if stage["block_type"] == "TransformerBlock":
        normed = _norm(state, f"{name}.block1.norm", tokens, tau)
        qkv = plain.linear(state, f"{name}.block1.query_key_value", normed)
        q, k, v = (plain.heads_of(p, stage["num_attention_heads"]) for p in qkv.chunk(3, dim=-1))
        mixed = plain.linear(state, f"{name}.block1.dense", plain.joined(plain.attention(q, k, v)))
    else:
        weight, bias = (state[f"{name}.block1.1.{kind}"].to(tokens) for kind in ("weight", "bias"))
        around = weight.shape[-1] // 2
        image = _map(tokens, stage)
        image = F.conv2d(image, weight, bias, padding=around, groups=stage["dim"])
        mixed = image.flatten(2).mT
    tokens = tokens + mixed
    normed = _norm(state, f"{name}.block2.norm", tokens, tau)
    gate = plain.gelu(plain.linear(state, f"{name}.block2.w0", normed))
    hidden = gate * plain.linear(state, f"{name}.block2.w1", normed)
    return tokens + plain.linear(state, f"{name}.block2.w2", hidden)


def _map(tokens: Tensor, stage: Stage) -> Tensor:
    """(B, N, C) to (B, C, H, W)."""
    return tokens.mT.reshape(len(tokens), -1, stage["max_height"], stage["max_width"])


def _norm(state: plain.State, name: str, x: Tensor, tau: Tensor) -> Tensor:
    """A block's norm, whose kind its tensors tell."""
    if f"{name}.scale.param0" not in state:
        return _layer_norm(state, name, x, tau)
    rms = x.square().mean(dim=-1, keepdim=True).sqrt()
    return _vector(state, f"{name}.scale", tau) * x / (rms + 1e-8)


def _layer_norm(state: plain.State, name: str, x: Tensor, tau: Tensor) -> Tensor:
    scale, shift = (_vector(state, f"{name}.{kind}", tau) for kind in ("weight", "bias"))
    return scale * plain.layer_norm(x, 1e-5) + shift


def _vector(state: plain.State, name: str, tau: Tensor) -> Tensor:
    """(B, 1, C): p1 + s (p0 - p1), where s = sigmoid((1 + a) tau + b)."""
    p0, p1, a, b = (
        state[f"{name}.{part}"].to(tau)
        for part in ("param0", "param1", "nodecay_weight", "nodecay_bias")
    )
    s = 1 / (1 + (-((1 + a) * tau[:, None] + b)).exp())
    return (p1 + s * (p0 - p1))[:, None]
