"""Formulas of the published codes as they stand, for certificates.

Nothing here is shared with `diffit.nn`: explicit sums and softmax, one line to an equation. Every
function computes in the dtype of its input and widens one weight at a time, so that a rendition in
float64 of float32 weights needs little memory.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """x W^T + b with the layer's ``.weight`` and, if it has one, ``.bias``."""
    product = x @ state[f"{name}.weight"].to(x).mT
    return product + state[f"{name}.bias"].to(x) if f"{name}.bias" in state else product


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the last axis."""
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def affine_norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm with the layer's ``.weight`` and ``.bias``."""
    return layer_norm(x, eps) * state[f"{name}.weight"].to(x) + state[f"{name}.bias"].to(x)


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean square + eps) over the last axis."""
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x / (1 + (-x).exp())


def gelu_tanh(x: Tensor) -> Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    cubed: Tensor = (2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)
    return x / 2 * (1 + cubed.tanh())


def gelu(x: Tensor) -> Tensor:
    """x/2 (1 + erf(x / sqrt(2)))."""
    return x / 2 * (1 + torch.erf(x / 2**0.5))


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for (B, H, N, d), one image after the other."""
    mixed = []
    for one_q, one_k, one_v in zip(q, k, v, strict=True):
        scores = one_q @ one_k.mT / q.shape[-1] ** 0.5
        mixed.append((scores if bias is None else scores + bias).softmax(dim=-1) @ one_v)
    return torch.stack(mixed)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) to (B, H, N, C / H)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """(B, H, N, d) to (B, N, H d)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def patches(state: State, name: str, x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, width): a convolution whose stride is its kernel, row-major."""
    weight = state[f"{name}.weight"].to(x)
    p = weight.shape[-1]
    cells = x.unfold(2, p, p).unfold(3, p, p)  # (B, C, rows, columns, p, p)
    tokens = torch.einsum("bcyxpq,ocpq->byxo", cells, weight).flatten(1, 2)
    return tokens + state[f"{name}.bias"].to(x)


def images(tokens: Tensor, patch: int) -> Tensor:
    """(B, N, p p C) of a square grid to (B, C, H, W); the channel is fastest."""
    side = math.isqrt(tokens.shape[1])
    cells = tokens.reshape(len(tokens), side, side, patch, patch, -1)
    return torch.einsum("byxpqc->bcypxq", cells).reshape(
        len(tokens), -1, side * patch, side * patch
    )


def time_features(time: Tensor, features: int = 256, *, shift: int = 0) -> Tensor:
    """[cos, sin] of t 10000^(-k / (half - shift)), in float32 as the sources compute them.

    The exponential alone is exact: on some machines theirs is the next number.
    """
    k = torch.arange(features // 2, dtype=torch.float32)
    exponent = -math.log(10000) * k / (features // 2 - shift)
    angle = time.float()[:, None] * exponent.double().exp().float()
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def table_rows(state: State, name: str, label: Tensor, like: Tensor) -> Tensor:
    """The rows of an embedding table, in the dtype of ``like``."""
    return state[f"{name}.weight"][label].to(like)
