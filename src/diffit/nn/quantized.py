"""Linear layers with integer weights: 8 bits with a scale a row, 4 bits with a scale a group."""

import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diffit.config import Settings
from diffit.errors import CheckpointError
from diffit.nn.kernels.rounded import integer_product, round_rows
from diffit.nn.rounding import compensated, fit_scale, nearest

Activations = Literal["full", "int8"]

BLOCK = 1 << 20
"""Weights that are made real at once: few enough to stay in a processor's cache."""


class Int8Config(Settings):
    """Weights of 8 bits, with a scale for each output."""

    name: Literal["int8"] = "int8"
    skip: tuple[str, ...] = ()
    """Layers that stay as they are: names or patterns such as blocks.0.*."""
    activations: Activations = "full"
    """int8 rounds what comes into a layer too: faster, and another function of the input."""


class Int4Config(Settings):
    """Weights of 4 bits, with a scale for each group of inputs of each output."""

    name: Literal["int4"] = "int4"
    skip: tuple[str, ...] = ()
    """Layers that stay as they are: names or patterns such as blocks.0.*."""
    group: int = Field(default=32, ge=2, le=4096, multiple_of=2)
    """At most so many inputs share a scale of 16 bits: 32 makes 4.5 bits a weight, 128 4.125."""


class _Quantised(nn.Module):
    """What integer layers share: how they are read, and what of them keeps its precision."""

    codes: Tensor
    scale: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moves; a scale, one number for many weights, keeps its precision."""
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Refuses, by name, tensors that are no weights of this layer."""
        _check(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *rest)


class Int8Linear(_Quantised):
    """x W^T + b with W[o, i] = scale[o] codes[o, i].

    For inference: there is nothing to train in it. Gradients with respect to x are those of the
    rounded weights; where they are asked for, activations are not rounded.

    Args:
        in_features, out_features: as of `torch.nn.Linear`.
        bias: whether there is one.
        activations: ``"int8"`` rounds each token to int8, its largest number to 127, and multiplies
            integers; ``"full"`` makes the weights real for each product.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activations: Activations = "full",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activations = activations
        codes = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", torch.zeros(out_features, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def of(
        cls, layer: nn.Linear, config: Int8Config, *, gram: Tensor | None = None
    ) -> "Int8Linear":
        """A layer with its weights rounded; without memory if it has none (device meta).

        ``gram`` (in, in) tells of its inputs, see `compensated`; without it the nearest are taken.
        """
        made = cls(*_sizes(layer), activations=config.activations, device=layer.weight.device)
        _take_bias(made, layer)
        if not layer.weight.is_meta:
            weight = layer.weight.detach()
            made.scale = fit_scale(weight, 127)
            made.codes = _rounded(weight, made.scale[:, None], 127, gram).to(torch.int8)
        return made

    def weight_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Rows ``first`` to ``last`` of W, real; W itself is never made whole."""
        scaled = self.codes[first:last].float().mul_(self.scale[first:last, None])
        return scaled.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of x or of autocast."""
        x = _in_autocast(x)
        if self.activations == "full" or (x.requires_grad and torch.is_grad_enabled()):
            return product(x, self)
        rows, scale = round_rows(x.reshape(-1, self.in_features))
        y = integer_product(rows, self.codes).mul_(scale)
        y = y.mul_(self.scale) if self.bias is None else torch.addcmul(self.bias, y, self.scale)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, as of `torch.nn.Linear`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activations={self.activations}"
        )


class Int4Linear(_Quantised):
    """x W^T + b with W[o, i] = scale[o, i / group] (code - 15/2), codes 0 .. 15.

    The grid has no zero and is symmetric: 16 levels where one with a zero would have 15. Byte k of
    the group / 2 bytes of a group holds weight k in its lower four bits, and weight k + group / 2
    in its upper ones. Gradients are as of `Int8Linear`.

    Args:
        in_features, out_features: as of `torch.nn.Linear`.
        bias: whether there is one.
        group: most inputs that share a scale; a row's inputs are shared out evenly among as few
            groups as that allows, so that next to nothing of the last one is unused.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        group: int = 32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if group < 2 or group % 2:
            raise ValueError(f"group is {group}; two weights share a byte, so it must be even")
        self.in_features, self.out_features = in_features, out_features
        count = math.ceil(in_features / group)
        self.group = 2 * math.ceil(in_features / (2 * count))
        shape = out_features, count
        codes = torch.zeros(*shape, self.group // 2, dtype=torch.uint8, device=device)
        self.register_buffer("codes", codes)
        # In bf16: half the bits of float32, all of its range; the codes are fitted to it.
        self.register_buffer("scale", torch.zeros(shape, dtype=torch.bfloat16, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def of(
        cls, layer: nn.Linear, config: Int4Config, *, gram: Tensor | None = None
    ) -> "Int4Linear":
        """A layer with its weights rounded; arguments as of `Int8Linear.of`."""
        made = cls(*_sizes(layer), group=config.group, device=layer.weight.device)
        _take_bias(made, layer)
        if layer.weight.is_meta:
            return made
        weight, group = layer.weight.detach(), made.group
        made.scale = fit_scale(_grouped(weight, group), 7.5, dtype=torch.bfloat16)
        scale = made.scale.repeat_interleave(group, dim=1)[:, : layer.in_features]
        codes = _grouped(_rounded(weight, scale, 7.5, gram), group).add_(7.5).to(torch.uint8)
        lower, upper = codes.chunk(2, dim=-1)
        made.codes = lower | upper << 4
        return made

    def weight_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Rows ``first`` to ``last`` of W, real; W itself is never made whole."""
        codes = self.codes[first:last]
        halves = codes.new_empty(*codes.shape[:2], 2, self.group // 2, dtype=torch.float32)
        halves[:, :, 0] = codes & 15
        halves[:, :, 1] = codes >> 4
        scaled = halves.sub_(7.5).mul_(self.scale[first:last, :, None, None])
        return scaled.flatten(1)[:, : self.in_features].to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of x or of autocast."""
        return product(_in_autocast(x), self)

    def extra_repr(self) -> str:
        """Sizes, as of `torch.nn.Linear`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, group={self.group}"
        )


IntegerLinear = Int8Linear | Int4Linear


def product(x: Tensor, layer: IntegerLinear) -> Tensor:
    """x W^T + b in the precision of x, with few rows of W real at a time, also for gradients."""
    y: Tensor = _Product.apply(x, layer)  # type: ignore[no-untyped-call]
    return y if layer.bias is None else y + layer.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """Autograd would keep all rows of W, real, until the gradient is taken."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: IntegerLinear) -> Tensor:
        ctx.layer = layer
        rows = _blocks(layer)
        return torch.cat([F.linear(x, layer.weight_rows(*r, x.dtype)) for r in rows], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        total = grad.new_zeros(*grad.shape[:-1], layer.in_features)
        for first, last in _blocks(layer):
            total += grad[..., first:last] @ layer.weight_rows(first, last, grad.dtype)
        return total, None


def _blocks(layer: IntegerLinear) -> list[tuple[int, int]]:
    step = max(1, BLOCK // layer.in_features)
    return [
        (first, min(first + step, layer.out_features))
        for first in range(0, layer.out_features, step)
    ]


def _in_autocast(x: Tensor) -> Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _sizes(layer: nn.Linear) -> tuple[int, int]:
    return layer.in_features, layer.out_features


def _take_bias(made: IntegerLinear, layer: nn.Linear) -> None:
    bias: Tensor | None = layer.bias
    made.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)


def _rounded(weight: Tensor, scale: Tensor, top: float, gram: Tensor | None) -> Tensor:
    return nearest(weight, scale, top) if gram is None else compensated(weight, scale, top, gram)


def _grouped(weight: Tensor, group: int) -> Tensor:
    """(out, in) as (out, groups, group), filled up with zeros."""
    padded = F.pad(weight.float(), (0, -weight.shape[1] % group))
    return padded.reshape(len(weight), -1, group)


def _check(layer: _Quantised, state: dict[str, Any], prefix: str) -> None:
    """CheckpointError, by name, for tensors that are no weights of this layer."""
    codes, scale = state.get(prefix + "codes"), state.get(prefix + "scale")
    if codes is not None and codes.dtype != layer.codes.dtype:
        raise CheckpointError(
            f"tensor {prefix}codes is {_name(codes)}, but these weights are "
            f"{_name(layer.codes)}; quantise the model anew"
        )
    if scale is None:
        return
    if scale.dtype != layer.scale.dtype:
        raise CheckpointError(
            f"tensor {prefix}scale is {_name(scale)}, but these scales are "
            f"{_name(layer.scale)}; quantise the model anew"
        )
    if not scale.is_meta and not bool(scale.isfinite().all()):
        raise CheckpointError(
            f"tensor {prefix}scale has numbers that are not finite; the file is damaged"
        )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
