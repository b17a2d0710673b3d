"""Time-dependent normalisation: TD-LN of DiMR (arXiv:2406.09416).

The noise level acts on a network through its norms alone: no time token, no layer that reads one.
Where adaLN-Zero spends 6 C^2 weights on a transformer block of width C, these spend 8 C or 16 C.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TimeNormKind = Literal["td-rms", "td-ln"]
"""`td-rms` scales (4 C weights), `td-ln` scales and shifts (8 C)."""

TIME_NORMS: tuple[str, ...] = get_args(TimeNormKind)

EPS_RMS = 1e-8  # added to the root mean square itself
EPS_LAYER = 1e-5


class TimeVector(nn.Module):
    """v(tau) = low + sigmoid((1 + slope) tau + offset) (high - low), for each channel.

    Args:
        width: channels C.
        start: the value of all channels in an untrained network, whatever the time.
    """

    undecayed = ("slope", "offset")
    """Parameters that no recipe lets weight decay act on."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.high = nn.Parameter(torch.full((width,), start))
        self.low = nn.Parameter(torch.full((width,), start))
        self.slope = nn.Parameter(torch.zeros(width))
        self.offset = nn.Parameter(torch.zeros(width))

    def forward(self, tau: Tensor) -> Tensor:
        """(R,) float32 to (R, C) float32; float64 of weights in float64."""
        low, high, slope, offset = (
            part.to(_at_least_float32(part.dtype))
            for part in (self.low, self.high, self.slope, self.offset)
        )
        blend = torch.addcmul(offset, 1 + slope, tau[:, None].to(slope.dtype)).sigmoid()
        return torch.lerp(low, high, blend)


class TimeRMSNorm(nn.Module):
    """x v(tau) / (rms(x) + 1e-8) over the channels of a token: the norm of DiMR's blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = TimeVector(width, 1.0)

    def forward(self, tokens: Tensor, tau: Tensor) -> Tensor:
        """(B, ..., C) tokens and (B,) or (1,) tau to (B, ..., C)."""
        return tokens * _inverse_rms(tokens) * _rows(self.scale(tau), tokens)


class TimeLayerNorm(nn.Module):
    """Layer norm whose scale and shift are functions of tau."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = TimeVector(width, 1.0)
        self.shift = TimeVector(width, 0.0)

    def forward(self, tokens: Tensor, tau: Tensor) -> Tensor:
        """(B, ..., C) tokens and (B,) or (1,) tau to (B, ..., C)."""
        scale, shift = self.scale(tau).to(tokens.dtype), self.shift(tau).to(tokens.dtype)
        width = tokens.shape[-1:]
        if scale.shape[0] == 1:  # one fused kernel, as in any layer norm
            return F.layer_norm(tokens, width, scale[0], shift[0], EPS_LAYER)
        normed = F.layer_norm(tokens, width, eps=EPS_LAYER)
        return torch.addcmul(_rows(shift, tokens), normed, _rows(scale, tokens))


def time_norm(width: int, kind: TimeNormKind) -> TimeRMSNorm | TimeLayerNorm:
    """The norm of that kind."""
    return TimeRMSNorm(width) if kind == "td-rms" else TimeLayerNorm(width)


def time_rows(time: Tensor, *, scale: float, shift: float = 0.0) -> Tensor:
    """(B,) time to (B,) tau = scale * time + shift; (1,) where one time was expanded to a batch.

    Samplers ask at one level for all images: the norms then need one row, and no look at the
    values, which would make an accelerator wait.
    """
    one = time.ndim == 1 and time.shape[0] > 1 and time.stride(0) == 0
    return scale * time[: 1 if one else None].float() + shift


def _inverse_rms(tokens: Tensor) -> Tensor:
    """(B, ..., 1): 1 / (rms + eps), computed in no less than float32."""
    dtype = _at_least_float32(tokens.dtype)
    norm: Tensor = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=dtype)
    inverse = (norm / math.sqrt(tokens.shape[-1]) + EPS_RMS).reciprocal()
    # Of a token of zeros it is 1e8, which half precision has no number for.
    return inverse.clamp(max=torch.finfo(tokens.dtype).max).to(tokens.dtype)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows(rows: Tensor, tokens: Tensor) -> Tensor:
    """(R, C) rows with unit axes, to act on (B, ..., C) tokens, in their dtype."""
    return rows.view(rows.shape[0], *(1,) * (tokens.ndim - 2), -1).to(tokens.dtype)
