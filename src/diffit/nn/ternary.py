"""Ternary linear layers, trained straight through: weights a {-1, 0, 1} (TerDiT, arXiv:2405.14854).

The full-precision weights, the masters, are what is trained; a forward pass sees them ternary:

    gamma = mean |W|,   Q = clip(round(W / (gamma + 1e-6)), -1, 1),   y = x (a Q)^T + bias
"""

import math
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from diffit.config import Settings
from diffit.errors import CheckpointError, ConfigError
from diffit.nn.linear import linear

GAMMA_EPS = 1e-6
"""Added to gamma, so that a matrix of zeros has the codes 0."""

NON_ZERO = 0.69
"""Share of codes that are not 0 for normal weights: P(|w| > gamma / 2), gamma = sqrt(2 / pi)."""

ScaleKind = Literal["learned", "absmean", "least-squares"]
"""What a is.

- ``learned``: a parameter, as in TerDiT; dL/dW = a G and dL/da = sum(Q G), with G = dL/d(aQ).
- ``absmean``: gamma, as in BitNet b1.58 (arXiv:2402.17764); dL/dW = G.
- ``least-squares``: sum(W Q) / sum(Q^2), which makes aQ nearest to W; dL/dW = G.
"""

FixedScale = Literal["absmean", "least-squares"]
"""Kinds of scale that follow from the weights."""

Granularity = Literal["tensor", "row", "group"]
"""What shares one gamma and one a: a matrix, the weights of an output, or ``group`` of them."""

InitialScale = Literal["least-squares", "absmean", "official"]
"""Where a learned a starts: as the other kinds of scale of the initial weights, or drawn from
N(0, 1) as in the released layer, where it may be negative."""


class TernaryConfig(Settings):
    """Linear layers that are trained ternary, straight through."""

    name: Literal["ternary"] = "ternary"
    """Kind of the linear layers in the network's blocks."""
    skip: tuple[str, ...] = ()
    """Layers that stay dense: patterns of their names, such as `column.0.*` or `*.modulation`."""
    scale: ScaleKind = "learned"
    """The scale a: learned (TerDiT), absmean (BitNet b1.58), or least-squares of the weights."""
    granularity: Granularity = "tensor"
    """What has a scale of its own: a matrix, an output (row), or a group of an output's weights."""
    group: PositiveInt = 128
    """Weights of a group, with granularity group; the inputs of a layer are whole groups."""
    initial_scale: InitialScale = "least-squares"
    """Where a learned scale starts: at that of the initial weights, or at official, N(0, 1)."""


class Ternary(NamedTuple):
    """A ternary matrix: codes (out, in) int8 in {-1, 0, 1}; float32 scale, (1,), (out,) or
    (out, in / group), which may be negative."""

    codes: Tensor
    scale: Tensor


def ternarise(
    weight: Tensor,
    *,
    kind: FixedScale = "least-squares",
    granularity: Granularity = "tensor",
    group: int = 128,
) -> Ternary:
    """The ternary matrix of a full-precision one.

    Args:
        weight: (out, in), computed with in float32; CheckpointError where it is not finite.
        kind: of the scale, see `ScaleKind`.
        granularity: what shares one gamma and one scale.
        group: weights of a group, which divides ``in``; for granularity ``group`` alone.
    """
    if not weight.isfinite().all():
        raise CheckpointError(
            "weights that are not finite have no ternary form; their checkpoint is damaged, or its "
            "training diverged"
        )
    shape = scale_shape(weight.shape, granularity, group)
    codes, scale = _ternarised(weight, shape, kind)
    return Ternary(codes.to(torch.int8), scale)


def dequantise(codes: Tensor, scale: Tensor) -> Tensor:
    """aQ, in the dtype of ``scale``; the shapes are those of `Ternary`."""
    parts = codes.to(scale.dtype).reshape(scale.numel(), -1)
    return (parts * scale.reshape(-1, 1)).view(codes.shape)


def scale_shape(
    shape: tuple[int, ...] | torch.Size, granularity: Granularity, group: int
) -> tuple[int, ...]:
    """Shape of the scale of an (out, in) matrix."""
    outputs, inputs = shape
    if granularity == "tensor":
        return (1,)
    if granularity == "row":
        return (outputs,)
    if inputs % group:
        raise ConfigError(
            f"model.linear.group {group} does not divide the {inputs} inputs of a layer; set a "
            "divisor, or name such layers in model.linear.skip"
        )
    return (outputs, inputs // group)


class TernaryLinear(nn.Linear):
    """A linear layer with ternary weights, trained straight through.

    ``weight`` (out, in) and ``bias`` are the full-precision parameters of the dense layer, under
    the same names; ``scale`` is a parameter where it is learned and None elsewhere. ``bias`` has
    the dtype of the inputs, the other two may keep float32 in a network of less.

    Where the weights are all 0, as adaLN-Zero starts, the codes are 0 and so is the product. Their
    gradient is a G, so that a learned a must not be 0: it starts at 1 / sqrt(0.69 in), which would
    give unit inputs unit outputs. After the first step of Adam all weights have about one size,
    hence codes of +-1: the layer opens at once, not gently as its dense twin.

    Args:
        inputs, outputs: channels.
        bias: whether there is one.
        kind, granularity, group, initial_scale: see `TernaryConfig`.
    """

    scale: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        kind: ScaleKind = "learned",
        granularity: Granularity = "tensor",
        group: int = 128,
        initial_scale: InitialScale = "least-squares",
        device: Any = None,
    ) -> None:
        super().__init__(inputs, outputs, bias=bias, device=device)
        self.kind: ScaleKind = kind
        self.granularity: Granularity = granularity
        self.group = group
        shape = scale_shape(self.weight.shape, granularity, group)
        learned = nn.Parameter(torch.empty(shape, device=device)) if kind == "learned" else None
        self.register_parameter("scale", learned)
        self.start_scale(initial_scale)

    @classmethod
    def of(cls, layer: nn.Linear, config: TernaryConfig) -> Self:
        """The ternary twin of a layer, whose parameters it takes over as masters."""
        ternary = cls(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            kind=config.scale,
            granularity=config.granularity,
            group=config.group,
            initial_scale=config.initial_scale,
            device="meta",  # no weights are drawn for it
        )
        ternary.weight, ternary.bias = layer.weight, layer.bias
        if ternary.scale is not None:
            ternary.scale = nn.Parameter(
                torch.empty(ternary.scale.shape, device=layer.weight.device)
            )
            ternary.start_scale(config.initial_scale)
        return ternary.train(layer.training)

    @torch.no_grad()
    def start_scale(self, start: InitialScale) -> None:
        """Set a learned scale to its start; the official one is drawn from torch's generator."""
        if start != "official":
            self.fit_scale(start)
        elif self.scale is not None:
            self.scale.normal_()

    @torch.no_grad()
    def fit_scale(self, kind: FixedScale = "least-squares") -> None:
        """Set a learned scale to what the present weights would have of the other kinds."""
        if self.scale is not None and not self.scale.is_meta:
            found = self._ternarised(kind).scale
            open_gate = 1 / math.sqrt(NON_ZERO * self.in_features)
            self.scale.copy_(torch.where(found == 0, open_gate, found))

    @torch.no_grad()
    def ternary(self) -> Ternary:
        """What the layer multiplies with, for packing."""
        found = self._ternarised(self._fixed)
        return found if self.scale is None else Ternary(found.codes, self.scale.float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return linear(x, self._weight().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """As of `nn.Linear`, and the kind of scale."""
        return f"{super().extra_repr()}, scale={self.kind}, granularity={self.granularity}"

    def _weight(self) -> Tensor:
        """aQ in float32, with its straight-through gradient."""
        shape = scale_shape(self.weight.shape, self.granularity, self.group)
        codes, scale = _ternarised(self.weight.detach(), shape, self._fixed)
        if self.scale is not None:
            return dequantise(straight_through(self.weight, codes), self.scale.float())
        return straight_through(self.weight, dequantise(codes, scale))

    @property
    def _fixed(self) -> FixedScale:
        return "absmean" if self.kind == "learned" else self.kind

    def _ternarised(self, kind: FixedScale) -> Ternary:
        masters = self.weight.detach()
        return ternarise(masters, kind=kind, granularity=self.granularity, group=self.group)


def straight_through(weight: Tensor, value: Tensor) -> Tensor:
    """``value``, whose gradient passes to ``weight`` unchanged."""
    through: Tensor = _StraightThrough.apply(weight, value)  # type: ignore[no-untyped-call]
    return through


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


def _ternarised(weight: Tensor, shape: tuple[int, ...], kind: FixedScale) -> tuple[Tensor, Tensor]:
    """Codes as float32 and the scale of that shape, of weights without a gradient."""
    parts = weight.float().reshape(math.prod(shape), -1)
    gamma = parts.abs().mean(dim=1, keepdim=True)
    codes = (parts / (gamma + GAMMA_EPS)).round_().clamp_(-1, 1)
    scale = gamma
    if kind == "least-squares":
        scale = (parts * codes).sum(dim=1) / codes.square().sum(dim=1).clamp_min(1)
    return codes.view(weight.shape), scale.reshape(shape)
