"""Attention and block of LLaMA (arXiv:2302.13971), modulated as DiT's are: those of Large-DiT."""

import torch
from torch import Tensor, nn

from diffit.nn.attention import OnMap, attend, check_heads, join_heads
from diffit.nn.blocks import GLU, DropoutAt
from diffit.nn.dropout import Dropout
from diffit.nn.linear import Linear
from diffit.nn.norm import modulate, rms_normed
from diffit.nn.rotary import turn_pairs

EPS = 1e-5
"""Of all norms in here, as LLaMA has it."""


class RotaryAttention(nn.Module):
    """Self-attention with rotary positions, whose queries, keys and values are layers of their own.

    Args:
        width: channels C of a token; a multiple of ``heads``.
        heads: number of attention heads.
        qk_norm: layer norms of queries and keys, over all heads together, before they turn.
    """

    def __init__(self, width: int, *, heads: int, qk_norm: bool) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.on_map: OnMap | None = None
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width, bias=False)
        self.q_norm = nn.LayerNorm(width, eps=EPS) if qk_norm else None
        self.k_norm = nn.LayerNorm(width, eps=EPS) if qk_norm else None
        self.out = Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, rotation: Tensor) -> Tensor:
        """(B, N, C) tokens and the (2, N, C / heads / 2) of `line_rotation` to (B, N, C)."""
        q, k, v = self.query(tokens), self.key(tokens), self._heads(self.value(tokens))
        if self.q_norm is not None and self.k_norm is not None:
            # Under autocast norms answer in float32; the products shall not.
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k = (turn_pairs(self._heads(x), rotation) for x in (q, k))
        mixed: Tensor = self.out(join_heads(attend(q, k, v, on_map=self.on_map)))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class LlamaBlock(nn.Module):
    """x + gate attention(norm(x)), then x + gate SwiGLU(norm(x)), both norms scaled and shifted.

    Args:
        width: channels C of a token.
        condition: channels T of the condition.
        heads: number of attention heads.
        hidden: hidden units of the SwiGLU.
        qk_norm: see `RotaryAttention`.
        modulation_norm: RMS norm of the 6 C shifts, scales and gates together, which keeps them
            small where the layer that makes them is ternary (TerDiT, arXiv:2405.14854).
        dropout: probability of dropout.
        dropout_at: where it acts.
    """

    def __init__(
        self,
        width: int,
        condition: int,
        *,
        heads: int,
        hidden: int,
        qk_norm: bool,
        modulation_norm: bool,
        dropout: float = 0.0,
        dropout_at: DropoutAt = "hidden",
    ) -> None:
        super().__init__()
        within, after = (dropout, 0.0) if dropout_at == "hidden" else (0.0, dropout)
        self.modulation = Linear(condition, 6 * width)
        self.modulation_norm = nn.RMSNorm(6 * width, eps=EPS) if modulation_norm else None
        self.norm1 = nn.RMSNorm(width, eps=EPS)
        self.attention = RotaryAttention(width, heads=heads, qk_norm=qk_norm)
        self.dropout1 = Dropout(after)
        self.norm2 = nn.RMSNorm(width, eps=EPS)
        self.mlp = GLU(width, hidden, bias=False, dropout=within)
        self.dropout2 = Dropout(after)

    def forward(
        self, tokens: Tensor, condition: Tensor, rotation: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Transform tokens.

        Args:
            tokens: (B, N, C).
            condition: (B, T), after its SiLU.
            rotation: of `line_rotation`.
            keys: (B,) dropout keys; None for no dropout.

        Returns:
            (B, N, C).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(condition)
        branch = self.attention(modulate(rms_normed(tokens, self.norm1), shift1, scale1), rotation)
        tokens = torch.addcmul(tokens, gate1[:, None], self.dropout1(branch, keys))
        branch = self.mlp(modulate(rms_normed(tokens, self.norm2), shift2, scale2), None, keys)
        return torch.addcmul(tokens, gate2[:, None], self.dropout2(branch, keys))

    def _modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """(B, T) to six (B, C)."""
        made: Tensor = self.modulation(condition)
        if self.modulation_norm is not None:
            made = rms_normed(made, self.modulation_norm)
        return made.chunk(6, dim=-1)
