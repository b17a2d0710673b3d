"""GELU in its tanh form (arXiv:1606.08415), written with a sigmoid, which is cheaper on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 17
"""Elements computed at a time: 512 KiB in float32, so that the steps between stay in the cache."""

# 0.5 (1 + tanh(z)) = sigmoid(2 z), with z = sqrt(2 / pi) (x + 0.044715 x^3)
_LINEAR = 2 * (2 / torch.pi) ** 0.5
_CUBIC = 0.044715 * _LINEAR


def gelu(x: Tensor, *, overwrite: bool = False) -> Tensor:
    """x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), equal to torch's tanh form up to rounding.

    Measured on one core of an EPYC 9005, 3.1 million elements, torch against this, in ms: float32
    3.7 / 1.9, bfloat16 4.0 / 2.0. Elsewhere torch's own fused kernel serves.

    Args:
        x: any shape.
        overwrite: the result may take the place of x, where no gradient needs x. Fresh memory
            costs about as much time as the function.
    """
    if x.device.type != "cpu" or x.dtype == torch.float64 or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _fill(x, x if overwrite and x.is_contiguous() else None)
    result: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
    return result


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _fill(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient: Tensor = torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
        return gradient


def _fill(x: Tensor, out: Tensor | None = None) -> Tensor:
    """gelu(x) in ``out``, which may be x, or in new memory; piece by piece, in float32."""
    x = x.contiguous()
    out = torch.empty_like(x) if out is None else out
    linear = torch.tensor(_LINEAR)
    for part, whole in zip(_split(x), _split(out), strict=True):
        y = part.float()
        gate = torch.square(y)
        torch.add(linear, gate, alpha=_CUBIC, out=gate)
        gate.mul_(y).sigmoid_()
        whole.copy_(gate.mul_(y))
    return out


def _split(x: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x.view(-1), CHUNK)
