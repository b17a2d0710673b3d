"""Products with packed ternary matrices on GPUs, by Triton; tiles are read as they lie in memory.

- `product`, W1.58A16: codes become numbers of the rows' dtype inside the kernel. For a few rows the
  time is that of reading weights, of which there is an eighth of float16's; many rows are faster
  by a dense product with dequantised weights.
- `rounded_product`, W1.58A8: 8-bit integer products, y as in `diffit.nn.kernels.rounded`.

Scales and bias are applied before anything is written. This module imports Triton, which PyTorch
for GPUs brings along on Linux: import it where a GPU is at hand.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from diffit.nn.kernels.rounded import round_rows

FEW_ROWS = 64
"""Rows that `product` is meant for, at most."""
LARGEST_INPUTS = 1 << 17
OUTPUTS, COLUMNS = 64, 8
"""Outputs of a program, and tiles of the inputs that one of its steps takes."""


def product(
    x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None, *, outputs: int
) -> Tensor:
    """x (a W)^T + b.

    Args:
        x: (M, K) float32, float16 or bfloat16.
        tiles: of the (N, K) codes, see `diffit.nn.tiles`.
        scale: float32 (1,) or (N,).
        bias: (N,) or None.
        outputs: N.
    """
    y = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    return _launch(x, None, tiles, scale, bias, y)


def rounded_product(
    x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None, *, outputs: int
) -> Tensor:
    """As `product`, with each row of x rounded to 8 bits first."""
    integers, row_scale = round_rows(x)
    y = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    return _launch(integers, row_scale, tiles, scale, bias, y)


def _launch(
    rows: Tensor,
    row_scale: Tensor | None,
    tiles: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    y: Tensor,
) -> Tensor:
    count, outputs = y.shape
    if y.numel() == 0:
        return y
    block = 16 if count <= 16 else 32 if count <= 32 else 64
    scale = scale.float().contiguous()
    ternary_kernel[(triton.cdiv(count, block), triton.cdiv(outputs, OUTPUTS))](
        rows.contiguous(),
        tiles.contiguous().view(torch.int32),
        scale,
        scale if row_scale is None else row_scale.contiguous(),
        scale if bias is None else bias.detach().float().contiguous(),
        y,
        count,
        outputs,
        rows.shape[1],
        tiles.shape[1],
        ROUNDED=row_scale is not None,
        SCALE_A_ROW=len(scale) > 1,
        BIAS=bias is not None,
        ROWS=block,
        OUTPUTS=OUTPUTS,
        COLUMNS=COLUMNS,
    )
    return y


@triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
def ternary_kernel(  # type: ignore[no-untyped-def]
    x,
    tiles,
    scale,
    row_scale,
    bias,
    y,
    M,
    N,
    K,
    T,
    ROUNDED: tl.constexpr,
    SCALE_A_ROW: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """ROWS x OUTPUTS of y (M, N), from x (M, K) and T columns of tiles, as words of 4 bytes.

    A word belongs to an output and a tile; the code of input 4 g + j is at its bits 8 j + 2 g. A
    step has four products, of the inputs with g = 0, 1, 2, 3: their order in a sum is free.
    """
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    word, j = tl.arange(0, 4 * COLUMNS) // 4, tl.arange(0, 4 * COLUMNS) % 4
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.int32 if ROUNDED else tl.float32)
    for first in range(0, T, COLUMNS):
        t = first + word
        words = tl.load(
            tiles + (n // 16 * T)[None, :] * 16 + t[:, None] * 16 + (n % 16)[None, :],
            mask=(t[:, None] < T) & (n[None, :] < N),
            other=0x55555555,
        )
        for g in tl.static_range(4):
            k = 16 * t + 4 * g + j
            rows = tl.load(
                x + m[:, None].to(tl.int64) * K + k[None, :],
                mask=(m[:, None] < M) & (k[None, :] < K),
                other=0,
            )
            weights = ((words >> (8 * j + 2 * g)[:, None]) & 3).to(tl.int8) - 1
            if ROUNDED:
                total = tl.dot(rows, weights, acc=total)
            else:
                # Not TF32: weights are exact in it, but rows are not.
                total = tl.dot(rows, weights.to(rows.dtype), acc=total, input_precision="ieee")
    if SCALE_A_ROW:
        result = total.to(tl.float32) * tl.load(scale + n, mask=n < N, other=0)[None, :]
    else:
        result = total.to(tl.float32) * tl.load(scale)
    if ROUNDED:
        result *= tl.load(row_scale + m, mask=m < M, other=0)[:, None]
    if BIAS:
        result += tl.load(bias + n, mask=n < N, other=0)[None, :]
    tl.store(
        y + m[:, None].to(tl.int64) * N + n[None, :],
        result.to(y.dtype.element_ty),
        mask=(m[:, None] < M) & (n[None, :] < N),
    )
