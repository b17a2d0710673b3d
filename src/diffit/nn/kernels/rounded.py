"""W1.58A8, by PyTorch: rows rounded to 8 bits times ternary matrices. What kernels must equal.

y[m, o] = s[m] sum_g a[o, g] sum_(k in g) W[o, k] q[m, k] + b[o],   x[m] = s[m] q[m]
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 127
"""The largest absolute value of a rounded number."""

HAS_VNNI = torch.cpu._is_vnni_supported()
"""Whether the processor multiplies 8-bit integers; asked once, so that torch.compile meets a
constant."""


class Rounded(NamedTuple):
    """Rows as integers (M, K) int8 times scales (M, 1) float32."""

    integers: Tensor
    scale: Tensor


def round_rows(x: Tensor) -> Rounded:
    """(M, K) rows to 8 bits: the largest absolute value of a row becomes 127, halves go to even.

    A row of zeros stays one. The scale of a row with a number that is not finite is NaN, so that
    all of its products are.
    """
    rows = x.float()
    largest = rows.abs().amax(dim=1, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, torch.nan)
    # A tensor over a tensor: PyTorch divides a number by a tensor inexactly, as a product.
    inverse = torch.full_like(largest, LEVELS) / largest
    # Rows so small that they have no finite inverse become zeros too.
    inverse = inverse.clamp(max=torch.finfo(torch.float32).max)
    integers = (rows * inverse).round_().nan_to_num_(0, 0, 0)
    return Rounded(integers.to(torch.int8), largest / LEVELS)


def rounded_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The linear layer of ternary codes on rounded rows.

    Args:
        x: (M, K), rounded here.
        codes: (N, K) int8 in {-1, 0, 1}.
        scale: float32 (1,), (N,) or (N, groups).
        bias: (N,) or None.

    Returns:
        (M, N) in the dtype of x.
    """
    integers, row_scale = round_rows(x)
    if scale.ndim == 1:
        total = integer_product(integers, codes) * scale
    else:
        size = codes.shape[1] // scale.shape[1]
        parts = zip(_columns(integers, size), _columns(codes, size), scale.unbind(1), strict=True)
        total = integers.new_zeros(len(x), len(codes), dtype=torch.float32)
        for q, part, a in parts:
            total += integer_product(q, part) * a
    total *= row_scale
    return (total if bias is None else total + bias.float()).to(x.dtype)


def integer_product(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) and (N, K) int8 to (M, N) float32: left right^T, exactly for K < 2^17."""
    if _has_integer_product(left, right):
        return torch._int_mm(left, right.t()).float()
    return F.linear(left.float(), right.float())  # sums below 2^24 are exact


def _columns(matrix: Tensor, width: int) -> list[Tensor]:
    """Parts of ``width`` columns."""
    return [part.contiguous() for part in torch.split(matrix, width, dim=1)]


def _has_integer_product(left: Tensor, right: Tensor) -> bool:
    """Whether PyTorch has a fast product of 8-bit integers for these."""
    if left.is_cuda:
        return len(left) > 16 and left.shape[1] % 8 == 0 and len(right) % 8 == 0
    # Elsewhere PyTorch multiplies integers one by one.
    return left.device.type == "cpu" and HAS_VNNI
