"""Time-dependent multi-head self-attention of DiffiT (arXiv:2312.02139, Eq. 3-6)."""

from typing import Literal

import torch
from torch import Tensor, nn

from diffit.nn.attention import (
    OnMap,
    RelativeBias,
    attend,
    check_heads,
    join_heads,
    merge,
    partition,
    split_heads,
)
from diffit.nn.linear import Linear
from diffit.nn.norm import EPS, rms_normed
from diffit.nn.rotary import Rotary

TimeInto = Literal["qkv", "bias", "mlp", "separate", "norm", "td-rms", "td-ln"]
"""Where the noise level enters a transformer block.

- ``qkv``: queries, keys and values all depend on it: TMSA, the paper's choice (Table 6, H).
- ``bias``: it changes the table of the relative position bias alone (Table 6, F).
- ``mlp``: it is added to the hidden units of the MLP alone (Table 6, G).
- ``separate``: space and time attend on their own, and the sum goes on (Table 7). The one time
  token attends to itself alone, so that its part is its value.
- ``norm``: it scales, shifts and gates the normalised tokens: adaLN-Zero of DiT (Figure 7b).
- ``td-rms``, ``td-ln``: there is no time token, the norms alone know the noise level, as in DiMR,
  see `diffit.nn.time_norm`.
"""

Position = Literal["bias", "rotary", "none"]
"""How attention knows where tokens are: `RelativeBias`, the paper's choice; `Rotary`; or not."""


class TMSA(nn.Module):
    """Self-attention whose queries, keys and values all depend on the noise level.

    It stands alone: put it where another network has self-attention (the paper's Table 5), over
    the row-major tokens of a feature map.

    Args:
        width: channels C of a token; a multiple of ``heads``.
        time_width: channels T of the time token.
        heads: number of attention heads.
        grid: (height, width) of the token grid.
        window: (height, width) of the local windows that attention stays in; None for the grid.
        time_into: ``"qkv"``, or one of the ablations, see `TimeInto`; with ``"mlp"``, ``"norm"``,
            ``"td-rms"`` and ``"td-ln"`` this layer itself knows no time.
        position: ``"bias"`` learns a relative position bias, ``"rotary"`` turns queries and keys
            by their place in the window; ``"none"`` leaves places to what comes before.
        qk_norm: RMS norm of each head's queries and keys, which bounds the logits in bfloat16.
    """

    def __init__(
        self,
        width: int,
        time_width: int,
        *,
        heads: int,
        grid: tuple[int, int],
        window: tuple[int, int] | None = None,
        time_into: TimeInto = "qkv",
        position: Position = "bias",
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.grid = grid
        self.window = window or grid
        _check_window(grid, self.window)
        if time_into == "bias" and position != "bias":
            raise ValueError("time_into 'bias' needs position 'bias'")
        self.on_map: OnMap | None = None
        self.qkv = Linear(width, 3 * width)
        # Two biases, although only their sum acts: published checkpoints carry both.
        self.qkv_time = Linear(time_width, 3 * width) if time_into == "qkv" else None
        self.value_time = Linear(time_width, width) if time_into == "separate" else None
        self.position = RelativeBias(self.window, heads) if position == "bias" else None
        self.rotary = Rotary(self.window, width // heads) if position == "rotary" else None
        self.q_norm = nn.RMSNorm(width // heads, eps=EPS) if qk_norm else None
        self.k_norm = nn.RMSNorm(width // heads, eps=EPS) if qk_norm else None
        entries = self.position.table.numel() if self.position else 0
        self.bias_time = Linear(time_width, entries) if time_into == "bias" else None
        self.out = Linear(width, width)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Attend within each window.

        Args:
            tokens: (B, N, C), row-major over the grid; or (B, G, n, C), already cut by `partition`.
            time: (B, T).

        Returns:
            The shape of ``tokens``.
        """
        if tokens.ndim == 3 and self.window != self.grid:
            windows = partition(tokens, self.grid, self.window)
            return merge(self._attend(windows, time), self.grid, self.window)
        if tokens.ndim == 3:
            return self._attend(tokens[:, None], time)[:, 0]
        return self._attend(tokens, time)

    def _attend(self, windows: Tensor, time: Tensor) -> Tensor:
        """(B, G, n, C) and (B, T) to (B, G, n, C)."""
        qkv = self.qkv(windows)
        if self.qkv_time is not None:
            # In place: nobody else sees the projections, and memory costs time.
            qkv += self.qkv_time(time)[:, None, None]
        q, k, v = split_heads(qkv.flatten(0, 1), self.heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = rms_normed(q, self.q_norm), rms_normed(k, self.k_norm)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        record = self._record if self.on_map is not None else None
        mixed = join_heads(
            attend(q, k, v, self._bias(time, windows.shape[1], q.dtype), on_map=record)
        )
        mixed = mixed.view(windows.shape)
        if self.value_time is not None:
            mixed = mixed + self.value_time(time)[:, None, None]
        out: Tensor = self.out(mixed)
        return out

    def _bias(self, time: Tensor, count: int, dtype: torch.dtype) -> Tensor | None:
        if self.position is None:
            return None
        if self.bias_time is None:
            bias: Tensor = self.position(dtype)
            return bias
        change = self.bias_time(time).view(-1, *self.position.table.shape)
        each: Tensor = self.position(dtype, change)
        return each.repeat_interleave(count, dim=0)

    def _record(self, weights: Tensor) -> None:
        """Hand on (B G, heads, n, n) weights as (B, heads, N, N) ones of the whole grid."""
        windows = (self.grid[0] // self.window[0]) * (self.grid[1] // self.window[1])
        if self.on_map is not None:
            self.on_map(
                _whole(weights.view(-1, windows, *weights.shape[1:]), self.grid, self.window)
            )


def _whole(weights: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """(B, G, heads, n, n) weights to (B, heads, N, N), zero between windows."""
    if grid == window:
        return weights[:, 0]
    batch, count, heads, n, _ = weights.shape
    cells = torch.arange(grid[0] * grid[1], device=weights.device)[None, :, None]
    places = partition(cells, grid, window)[0, ..., 0]
    whole = weights.new_zeros(batch, heads, count * n, count * n)
    for place, block in zip(places, weights.unbind(1), strict=True):
        whole[:, :, place[:, None], place] = block
    return whole


def _check_window(grid: tuple[int, int], window: tuple[int, int]) -> None:
    if grid[0] % window[0] or grid[1] % window[1]:
        raise ValueError(
            f"window {window[0]} x {window[1]} does not tile a grid of {grid[0]} x {grid[1]} tokens"
        )
