"""What networks are stacked of: the MLP, transformer blocks, and the parts of a U-shape."""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffit.nn.attention import SelfAttention, merge, partition
from diffit.nn.dropout import Dropout
from diffit.nn.gelu import gelu
from diffit.nn.linear import Linear
from diffit.nn.norm import EPS, AdaptiveNorm, TokenNorm, map_norm, rms_normed, token_norm
from diffit.nn.time_norm import TIME_NORMS, TimeNormKind, time_norm
from diffit.nn.tmsa import TMSA, Position, TimeInto

DropoutAt = Literal["hidden", "branches"]
"""Where dropout acts: on the MLP's hidden units, or on what each residual branch adds."""

NormOrder = Literal["norm-swish", "swish-norm"]

MLPKind = Literal["gelu", "swiglu"]
"""Linear, GELU, Linear; or the gated form, see `SwiGLU`."""


class MLP(nn.Module):
    """Linear, GELU, Linear (paper, Eq. 8 and Section H.2).

    Args:
        width: channels C of a token.
        hidden: number of hidden units.
        time_width: channels T of a time token that is added to the hidden units (Table 6, G);
            0 for none.
        dropout: probability of dropout on the hidden units.
        exact: GELU by the error function, as U-ViT has it, not in its tanh form.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        time_width: int = 0,
        dropout: float = 0.0,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.exact = exact
        self.up = Linear(width, hidden)
        self.up_time = Linear(time_width, hidden) if time_width else None
        self.dropout = Dropout(dropout)
        self.down = Linear(hidden, width)

    def forward(
        self, tokens: Tensor, time: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """(B, ..., C) tokens, (B, T) time if it was asked for, dropout keys, to (B, ..., C)."""
        hidden = self.up(tokens)
        if self.up_time is not None:
            hidden = hidden + _over(self.up_time(time), hidden)
        hidden = F.gelu(hidden) if self.exact else gelu(hidden, overwrite=True)
        hidden = self.dropout(hidden, keys)
        out: Tensor = self.down(hidden)
        return out


class GLU(nn.Module):
    """down(act(gate(x)) up(x)), the gated MLP (arXiv:2002.05202, Eq. 6).

    Args:
        width: channels C of a token.
        hidden: number of hidden units; `swiglu_hidden` makes it as large as an `MLP`.
        activation: SiLU makes it a SwiGLU; GELU, the exact one, a GEGLU, as DiMR has it.
        bias: learned biases, which Eq. 6 has not.
        dropout: probability of dropout on the hidden units.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Literal["silu", "gelu"] = "silu",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = F.silu if activation == "silu" else F.gelu
        self.gate = Linear(width, hidden, bias=bias)
        self.up = Linear(width, hidden, bias=bias)
        self.dropout = Dropout(dropout)
        self.down = Linear(hidden, width, bias=bias)

    def forward(
        self, tokens: Tensor, time: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """(B, ..., C) tokens and dropout keys to (B, ..., C); ``time`` does not act."""
        hidden = self.activation(self.gate(tokens)) * self.up(tokens)
        out: Tensor = self.down(self.dropout(hidden, keys))
        return out


def swiglu_hidden(width: int, ratio: float) -> int:
    """Hidden units with which a SwiGLU has the weights of an MLP of ``ratio``, in whole 64s."""
    return -(-int(width * ratio * 2 / 3) // 64) * 64


class TransformerBlock(nn.Module):
    """x + attention(norm(x), time), then x + MLP(norm(x)) (paper, Eq. 7-8).

    Args:
        attention: `TMSA` or `SelfAttention`, called with tokens and time.
        width: channels C of a token.
        hidden: hidden units of the MLP.
        affine: learned scale and shift in the two norms.
        mlp_time: channels T of a time token for the MLP; 0 for none.
        mlp: kind of the MLP; a SwiGLU takes no time token.
        norm: kind of the two norms.
        dropout: probability of dropout.
        dropout_at: where it acts.
    """

    def __init__(
        self,
        attention: TMSA | SelfAttention,
        width: int,
        *,
        hidden: int,
        affine: bool = False,
        mlp_time: int = 0,
        mlp: MLPKind = "gelu",
        norm: TokenNorm = "layer",
        dropout: float = 0.0,
        dropout_at: DropoutAt = "hidden",
    ) -> None:
        super().__init__()
        if mlp == "swiglu" and mlp_time:
            raise ValueError("a swiglu MLP takes no time token; take the gelu one")
        within, after = (dropout, 0.0) if dropout_at == "hidden" else (0.0, dropout)
        self.norm1 = token_norm(width, affine=affine, kind=norm)
        self.attention = attention
        self.dropout1 = Dropout(after)
        self.norm2 = token_norm(width, affine=affine, kind=norm)
        self.mlp = (
            GLU(width, hidden, dropout=within)
            if mlp == "swiglu"
            else MLP(width, hidden, time_width=mlp_time, dropout=within)
        )
        self.dropout2 = Dropout(after)

    def forward(self, tokens: Tensor, time: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, ..., C) tokens, (B, T) time and (B,) dropout keys to (B, ..., C)."""
        tokens = tokens + self.dropout1(self.attention(self.norm1(tokens), time), keys)
        mixed: Tensor = tokens + self.dropout2(self.mlp(self.norm2(tokens), time, keys), keys)
        return mixed


class AdaptiveBlock(nn.Module):
    """Transformer block with adaLN-Zero: the condition shifts, scales and gates (arXiv:2212.09748).

    Args:
        attention: `SelfAttention`, or a `TMSA` that knows no time.
        width: channels C of a token.
        time_width: channels T of the condition.
        hidden: hidden units of the MLP.
        mlp_eps: added to the variance in the norm before the MLP.
        modulation_norm: RMS norm of the 6 C shifts, scales and gates together, which keeps them
            small where the layer that makes them is ternary (TerDiT, arXiv:2405.14854).
        dropout: probability of dropout.
        dropout_at: where it acts.
    """

    def __init__(
        self,
        attention: TMSA | SelfAttention,
        width: int,
        time_width: int,
        *,
        hidden: int,
        mlp_eps: float = EPS,
        modulation_norm: bool = False,
        dropout: float = 0.0,
        dropout_at: DropoutAt = "hidden",
    ) -> None:
        super().__init__()
        within, after = (dropout, 0.0) if dropout_at == "hidden" else (0.0, dropout)
        self.modulation = Linear(time_width, 6 * width)
        self.modulation_norm = nn.RMSNorm(6 * width, eps=1e-5) if modulation_norm else None
        self.norm1 = AdaptiveNorm(width)
        self.attention = attention
        self.dropout1 = Dropout(after)
        self.norm2 = AdaptiveNorm(width, eps=mlp_eps)
        self.mlp = MLP(width, hidden, dropout=within)
        self.dropout2 = Dropout(after)

    def forward(
        self,
        tokens: Tensor,
        time: Tensor,
        keys: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens.

        Args:
            tokens: (B, ..., C).
            time: (B, T) condition.
            keys: (B,) dropout keys; None for no dropout.
            bias: position bias for `SelfAttention`; None for none.

        Returns:
            The shape of ``tokens``.
        """
        modulation = self.modulation(F.silu(time))
        if self.modulation_norm is not None:
            modulation = rms_normed(modulation, self.modulation_norm)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        more = () if bias is None else (bias,)
        branch = self.attention(self.norm1(tokens, shift1, scale1), time, *more)
        tokens = torch.addcmul(tokens, _over(gate1, tokens), self.dropout1(branch, keys))
        branch = self.mlp(self.norm2(tokens, shift2, scale2), None, keys)
        return torch.addcmul(tokens, _over(gate2, tokens), self.dropout2(branch, keys))


class TimeNormBlock(nn.Module):
    """x + attention(norm(x, tau)), then x + MLP(norm(x, tau)): TD-LN of DiMR (arXiv:2406.09416).

    Args:
        attention: `SelfAttention`, or a `TMSA` that knows no time.
        width: channels C of a token.
        kind: of the two norms, which alone know the noise level.
        hidden: hidden units of the MLP.
        mlp: kind of the MLP.
        dropout: probability of dropout.
        dropout_at: where it acts.
    """

    def __init__(
        self,
        attention: TMSA | SelfAttention,
        width: int,
        *,
        kind: TimeNormKind,
        hidden: int,
        mlp: MLPKind = "gelu",
        dropout: float = 0.0,
        dropout_at: DropoutAt = "hidden",
    ) -> None:
        super().__init__()
        within, after = (dropout, 0.0) if dropout_at == "hidden" else (0.0, dropout)
        self.norm1 = time_norm(width, kind)
        self.attention = attention
        self.dropout1 = Dropout(after)
        self.norm2 = time_norm(width, kind)
        self.mlp = (GLU if mlp == "swiglu" else MLP)(width, hidden, dropout=within)
        self.dropout2 = Dropout(after)

    def forward(
        self,
        tokens: Tensor,
        tau: Tensor,
        keys: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """(B, ..., C) tokens, (B,) or (1,) tau, keys and bias as in `AdaptiveBlock`, to tokens."""
        more = () if bias is None else (bias,)
        branch = self.attention(self.norm1(tokens, tau), tau, *more)
        tokens = tokens + self.dropout1(branch, keys)
        mixed: Tensor = tokens + self.dropout2(self.mlp(self.norm2(tokens, tau), None, keys), keys)
        return mixed


def diffit_block(
    width: int,
    time_width: int,
    *,
    heads: int,
    grid: tuple[int, int],
    window: tuple[int, int] | None = None,
    hidden: int,
    time_into: TimeInto = "qkv",
    position: Position = "bias",
    qk_norm: bool = False,
    modulation_norm: bool = False,
    mlp: MLPKind = "gelu",
    norm: TokenNorm = "layer",
    affine: bool = False,
    dropout: float = 0.0,
    dropout_at: DropoutAt = "hidden",
) -> TransformerBlock | AdaptiveBlock | TimeNormBlock:
    """DiffiT's transformer block, or the ablation of it that ``time_into`` names."""
    attention = TMSA(
        width,
        time_width,
        heads=heads,
        grid=grid,
        window=window,
        time_into=time_into,
        position=position,
        qk_norm=qk_norm,
    )
    if time_into == "norm":
        return AdaptiveBlock(
            attention,
            width,
            time_width,
            hidden=hidden,
            modulation_norm=modulation_norm,
            dropout=dropout,
            dropout_at=dropout_at,
        )
    if time_into in TIME_NORMS:
        return TimeNormBlock(
            attention,
            width,
            kind=cast(TimeNormKind, time_into),
            hidden=hidden,
            mlp=mlp,
            dropout=dropout,
            dropout_at=dropout_at,
        )
    return TransformerBlock(
        attention,
        width,
        hidden=hidden,
        affine=affine,
        mlp_time=time_width if time_into == "mlp" else 0,
        mlp=mlp,
        norm=norm,
        dropout=dropout,
        dropout_at=dropout_at,
    )


class NormConv(nn.Module):
    """3x3 convolution of the activated, normalised feature map (paper, Eq. 9).

    Args:
        channels, out: channels before and after.
        groups: wanted groups of the group norm, see `map_norm`.
        order: GN then Swish, as Eq. 9 has it, or Swish then GN, as Figure 4 labels its box.
    """

    def __init__(
        self, channels: int, out: int, *, groups: int, order: NormOrder = "norm-swish"
    ) -> None:
        super().__init__()
        self.norm = map_norm(channels, groups=groups)
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H, W)."""
        x = F.silu(self.norm(x)) if self.order == "norm-swish" else self.norm(F.silu(x))
        convolved: Tensor = self.conv(x)
        return convolved


def downsample(channels: int, kind: Literal["conv", "bilinear"]) -> nn.Module:
    """Halve a feature map: 3x3 convolution with stride 2, or bilinear, the mean of 2 x 2 pixels."""
    if kind == "conv":
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    return nn.Upsample(scale_factor=0.5, mode="bilinear")


def upsample(channels: int, kind: Literal["nearest", "transposed"]) -> nn.Module:
    """Double a feature map: nearest neighbour, 3x3 convolution; or 4x4 transposed convolution."""
    if kind == "transposed":
        return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1)
    )


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, C, H, W) feature map to (B, G, n, C) tokens in local windows."""
    return partition(x.permute(0, 2, 3, 1).flatten(1, 2), (x.shape[2], x.shape[3]), window)


def from_windows(windows: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows`; the result lies in memory channels last."""
    tokens = merge(windows, grid, window)
    return tokens.view(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)


def run(block: nn.Module, *inputs: Any, checkpointed: bool) -> Tensor:
    """block(*inputs); when checkpointed, its activations are redone in the backward pass.

    A block with a ``stand_in`` is replaced by that, see `diffit.nn.reuse`.
    """
    block = getattr(block, "stand_in", None) or block
    if checkpointed and torch.is_grad_enabled():
        # Blocks draw no random numbers (dropout is a function of keys): no state to keep.
        result: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    else:
        result = block(*inputs)
    return result


def _over(rows: Tensor, tokens: Tensor) -> Tensor:
    """(B, C) rows with unit axes, to act on (B, ..., C) tokens."""
    return rows.view(tokens.shape[0], *(1,) * (tokens.ndim - 2), -1)
