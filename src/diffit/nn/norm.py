"""Normalisation: layer norm of tokens, group norm of feature maps, adaptive layer norm."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6

TokenNorm = Literal["layer", "rms"]
"""Layer norm, or RMS norm, which subtracts no mean and learns no shift (arXiv:1910.07467)."""


def token_norm(width: int, *, affine: bool, kind: TokenNorm = "layer") -> nn.Module:
    """Norm over the channels of a token, with or without learned scale (and shift)."""
    if kind == "rms":
        return nn.RMSNorm(width, eps=EPS, elementwise_affine=affine)
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=affine)


def map_norm(channels: int, *, groups: int) -> nn.GroupNorm:
    """Group norm of a feature map, in gcd(channels, groups) groups.

    Narrow networks so keep the setting of wide ones: 48 channels make 16 groups, not 32.
    """
    return nn.GroupNorm(math.gcd(channels, groups), channels, eps=EPS)


def rms_normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """``norm`` in the dtype of x, which under autocast is not that of its learned scale."""
    scale: Tensor = norm.weight
    return F.rms_norm(x, (x.shape[-1],), scale.to(x.dtype), norm.eps)


class AdaptiveNorm(nn.Module):
    """Layer norm whose scale and shift are handed in, one of each per sample (adaLN of DiT)."""

    def __init__(self, width: int, *, eps: float = EPS) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)

    def forward(self, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """(B, ..., C) tokens, (B, C) shift and scale: norm(tokens) (1 + scale) + shift."""
        return modulate(self.norm(tokens), shift, scale)


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(B, ..., C) normed tokens, (B, C) shift and scale, to normed (1 + scale) + shift.

    The result has the dtype of the scale, which under autocast is that of the next layer.
    """
    over = (normed.shape[0], *(1,) * (normed.ndim - 2), -1)
    return torch.addcmul(shift.view(over), normed.to(scale.dtype), 1 + scale.view(over))
