"""The packed ternary linear layer: y = x (a W)^T + b, W in {-1, 0, 1}, at 2 bits a weight."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from diffit.config import Settings
from diffit.errors import CheckpointError
from diffit.nn.kernels import native
from diffit.nn.kernels.rounded import rounded_product
from diffit.nn.linear import linear
from diffit.nn.ternary import Granularity, TernaryLinear, scale_shape, ternarise
from diffit.nn.tiles import (
    TILE,
    base3_shape,
    base3_to_tiles,
    check_tiles,
    pack_tiles,
    tiles_shape,
    tiles_to_base3,
    unpack_tiles,
)

Storage = Literal["2-bit", "base-3"]
Activations = Literal["full", "int8"]
PANEL_WEIGHTS = 1 << 20
"""Weights that exist in full precision at a time."""
SEARCH_WEIGHTS = 1 << 20
"""Weights of a matrix from which it pays to look for equal rows of inputs first: 16 rows of 1024
are compared in 0.06 ms, and a million weights multiply 16 rows in 0.09 ms."""


class TernaryPackedConfig(Settings):
    """Ternary linear layers packed for inference, 2 bits a weight."""

    name: Literal["ternary-packed"] = "ternary-packed"
    """Kind of the linear layers in the network's blocks."""
    skip: tuple[str, ...] = ()
    """Layers that stay dense: patterns of their names, such as `column.0.*` or `*.modulation`."""
    granularity: Granularity = "tensor"
    """What has a scale of its own: a matrix, an output (row), or a group of an output's weights."""
    group: PositiveInt = 128
    """Weights of a group, with granularity group; the inputs of a layer are whole groups."""
    storage: Storage = "2-bit"
    """How codes lie in files: as in memory, or base-3, five to a byte: a fifth smaller, and
    unpacked when loaded."""
    activations: Activations = "full"
    """What is multiplied with the codes: the inputs as they are, or int8, each token rounded to 8
    bits of its largest value: several times faster on CPUs, and another function, nearly."""


class PackedTernary(nn.Module):
    """A linear layer whose weights are a {-1, 0, 1}, for inference.

    Buffers: ``codes``, uint8 tiles (see `diffit.nn.tiles`), and ``scale``, the float32 a of the
    matrix (1,), of each output (out,), or of groups of its inputs (out, groups); it may be
    negative. ``bias`` (out,) is a parameter or None.

    Where a gradient is asked for, inputs are not rounded, whatever ``activations`` says: it is
    exact, and that of the function which is then computed. A row of inputs with a number that is
    not finite has NaN for outputs.

    What multiplies: full activations meet weights that are dequantised a panel at a time, or kept
    (`keep_weights_`), or on GPUs, where rows are few, inside a Triton kernel; those of 8 bits meet
    the codes, in the C++ library on CPUs and in a Triton kernel on GPUs. Without them, and where a
    scale has groups that they do not take (GPUs: any; CPUs: of no multiple of 16), PyTorch does.

    Args:
        inputs, outputs: channels.
        bias: whether there is one.
        scale_shape: of the scale.
        storage: what a state dict holds as ``codes``: the tiles, or base 3.
        activations: what the codes are multiplied with, see `TernaryPackedConfig`.
    """

    codes: Tensor
    scale: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        scale_shape: tuple[int, ...] = (1,),
        storage: Storage = "2-bit",
        activations: Activations = "full",
        device: Any = None,
    ) -> None:
        super().__init__()
        _check_scale(scale_shape, inputs, outputs)
        self.in_features, self.out_features = inputs, outputs
        self.storage: Storage = storage
        self.activations: Activations = activations
        self.keeps_weights = False
        self._kept: Tensor | None = None
        # Weights of 0 until there are others: a byte of four codes of 1.
        shape = tiles_shape(outputs, inputs)
        zeros = torch.full(shape, 0b01010101, dtype=torch.uint8, device=device)
        self.register_buffer("codes", zeros)
        self.register_buffer("scale", torch.ones(scale_shape, device=device))
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.zeros(outputs, device=device), requires_grad=False)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        storage: Storage = "2-bit",
        activations: Activations = "full",
    ) -> Self:
        """The layer of (out, in) int8 codes in {-1, 0, 1}, a scale, and an (out,) bias or None."""
        outputs, inputs = codes.shape
        layer = cls(
            inputs,
            outputs,
            bias=bias is not None,
            scale_shape=tuple(scale.shape),
            storage=storage,
            activations=activations,
            device="meta",
        )
        layer.codes, layer.scale = pack_tiles(codes), scale.detach().float().contiguous()
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return layer

    @classmethod
    def of(cls, layer: nn.Linear, config: TernaryPackedConfig) -> Self:
        """The packed twin of a ternary layer, exactly; of a dense one, its ternary neighbour."""
        if layer.weight.is_meta:
            return cls(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                scale_shape=scale_shape(layer.weight.shape, config.granularity, config.group),
                storage=config.storage,
                activations=config.activations,
                device="meta",
            )
        if isinstance(layer, TernaryLinear):
            codes, scale = layer.ternary()
        else:
            masters = layer.weight.detach()
            codes, scale = ternarise(masters, granularity=config.granularity, group=config.group)
        return cls.from_codes(
            codes, scale, layer.bias, storage=config.storage, activations=config.activations
        )

    def unpack(self) -> Tensor:
        """The codes, (out, in) int8 of -1, 0 and 1."""
        return unpack_tiles(self.codes, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs), in the dtype of x."""
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        if torch.is_grad_enabled() and (x.requires_grad or _learns(self.bias)):
            product: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
            return product if self.bias is None else product + self.bias.to(x.dtype)
        if self.activations == "int8" and not self.codes.is_meta:
            if self._may_repeat(x):
                # Sums of integers are exact: a row is the same, to the bit, in any company.
                distinct, which = torch.unique(x, dim=0, return_inverse=True)
                return self._rounded_product(distinct)[which]
            rows = x.reshape(-1, self.in_features)
            return self._rounded_product(rows).view(*x.shape[:-1], self.out_features)
        return self._product(x, None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        """As of `nn.Linear`, and the shape of the scale."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scale={tuple(self.scale.shape)}"
        )

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.keeps_weights:
            return linear(x, self._kept_weight(x.dtype), bias)
        count = x.numel() // self.in_features
        gpu = self._triton(x.device)
        if gpu is not None and count <= gpu.FEW_ROWS and x.dtype != torch.float64:
            rows = x.reshape(count, self.in_features)
            y = gpu.product(rows, self.codes, self.scale, bias, outputs=self.out_features)
            few: Tensor = y.view(*x.shape[:-1], self.out_features)
            return few
        parts = [
            linear(x, self._weight(rows, x.dtype), None if bias is None else bias[rows])
            for rows in self._panels()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _may_repeat(self, x: Tensor) -> bool:
        """Whether these are conditions, one row an image, of which few may be distinct.

        What modulates blocks reads them: in sampling all images share the noise level, and a guided
        batch of one class has two. On GPUs such products cost as much for two rows as for many.
        """
        return (
            x.ndim == 2
            and len(x) > 2
            and self.in_features * self.out_features >= SEARCH_WEIGHTS
            and x.device.type == "cpu"
            and not torch.compiler.is_compiling()
        )

    def _rounded_product(self, rows: Tensor) -> Tensor:
        if self._has_library(rows.device):
            return native.rounded_product(
                rows, self.codes, self.scale, self.bias, outputs=self.out_features
            )
        gpu = self._triton(rows.device)
        if gpu is not None:
            y: Tensor = gpu.rounded_product(
                rows, self.codes, self.scale, self.bias, outputs=self.out_features
            )
            return y
        parts = []
        for part in self._panels():
            codes = self._codes(part)
            scale = self.scale if len(self.scale) == 1 else self.scale[part]
            bias = None if self.bias is None else self.bias[part]
            parts.append(rounded_product(rows, codes, scale, bias))
        return torch.cat(parts, dim=-1)

    def _product_transposed(self, y: Tensor) -> Tensor:
        total = y.new_zeros(*y.shape[:-1], self.in_features)
        for rows in self._panels():
            total = total + y[..., rows] @ self._weight(rows, y.dtype)
        return total

    def _panels(self) -> Iterator[slice]:
        """The outputs, in parts of whole tiles."""
        tiles = max(1, PANEL_WEIGHTS // (TILE * self.in_features))
        for first in range(0, self.out_features, tiles * TILE):
            yield slice(first, min(first + tiles * TILE, self.out_features))

    def _weight(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """The weights of some outputs, from a whole tile on, in full precision."""
        scale = self.scale if len(self.scale) == 1 else self.scale[rows]
        count = rows.stop - rows.start
        if self._has_library(self.codes.device):
            tiles = self._tiles_of(rows)
            return native.weights(tiles, scale, outputs=count, inputs=self.in_features, dtype=dtype)
        codes = self._codes(rows).to(torch.float32)
        groups = codes.view(count, scale[0].numel(), -1)
        return groups.mul_(scale.reshape(len(scale), -1, 1)).view(codes.shape).to(dtype)

    def _codes(self, rows: slice) -> Tensor:
        """The codes of some outputs, from a whole tile on, as int8."""
        return unpack_tiles(self._tiles_of(rows), rows.stop - rows.start, self.in_features)

    def _tiles_of(self, rows: slice) -> Tensor:
        return self.codes[rows.start // TILE : -(-rows.stop // TILE)]

    def _has_library(self, device: torch.device) -> bool:
        groups = self.scale[0].numel()
        return native.serves(device, inputs=self.in_features, groups=groups)

    def _triton(self, device: torch.device) -> Any:
        """The module `diffit.nn.kernels.gpu` if it takes this layer there, or None."""
        if device.type != "cuda" or self.scale[0].numel() > 1:
            return None
        gpu = _triton_kernels()
        return gpu if gpu is not None and self.in_features < gpu.LARGEST_INPUTS else None

    def _kept_weight(self, dtype: torch.dtype) -> Tensor:
        if self._kept is None or self._kept.dtype != dtype:
            self._kept = self._weight(slice(0, self.out_features), dtype)
        return self._kept

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moves; the scale, one number for many weights, keeps its precision."""
        scale, self._kept = self.scale, None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scale.dtype != torch.float32 and not scale.is_meta:
            self.scale = scale.to(self.scale.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.storage == "base-3":
            name, shape = f"{prefix}codes", (self.out_features, self.in_features)
            if self.codes.is_meta:
                destination[name] = self.codes.new_empty(base3_shape(*shape))
            else:
                destination[name] = tiles_to_base3(self.codes, *shape)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Refuses what is no ternary matrix, in one sentence, before anything is computed."""
        self._kept = None
        codes, scale = f"{prefix}codes", f"{prefix}scale"
        if codes in state_dict and not state_dict[codes].is_meta:
            state_dict[codes] = self._tiles(state_dict[codes], source=codes)
        if scale in state_dict and not state_dict[scale].is_meta:
            state_dict[scale] = self._scale(state_dict[scale], source=scale)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _tiles(self, codes: Tensor, *, source: str) -> Tensor:
        shape = self.out_features, self.in_features
        if self.storage == "base-3" and codes.ndim == 1:
            return base3_to_tiles(codes, *shape, source=source)
        check_tiles(codes, *shape, source=source)
        return codes

    def _scale(self, scale: Tensor, *, source: str) -> Tensor:
        if scale.shape != self.scale.shape:
            raise CheckpointError(
                f"{source} has shape {tuple(scale.shape)}; its layer wants "
                f"{tuple(self.scale.shape)}"
            )
        if not scale.is_floating_point() or not bool(scale.float().isfinite().all()):
            raise CheckpointError(f"{source} has numbers that are not finite; it is damaged")
        return scale.float()


def keep_weights_(network: nn.Module, keep: bool = True) -> None:
    """Let the packed layers of a network keep their full-precision weights after the first use.

    Products of full activations then take a dense layer's time, and the layers its memory: 8 times
    that of the codes in bfloat16, 16 times in float32. What is kept is no part of a state dict, and
    is made anew once a layer was moved or filled.
    """
    for layer in network.modules():
        if isinstance(layer, PackedTernary):
            layer.keeps_weights, layer._kept = keep, None


class _Product(torch.autograd.Function):
    """x (a W)^T, differentiated with respect to x; no weight in full precision is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedTernary) -> Tensor:
        ctx.layer = layer
        return layer._product(x, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.layer._product_transposed(gradients[0]), None


@cache
def _triton_kernels() -> Any:
    """The module of GPU kernels, or None where there is no Triton."""
    try:
        from diffit.nn.kernels import gpu
    except ImportError:
        return None
    return gpu


def _learns(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


def _check_scale(shape: tuple[int, ...], inputs: int, outputs: int) -> None:
    grouped = len(shape) == 2 and shape[0] == outputs and shape[1] > 0 and inputs % shape[1] == 0
    if shape not in ((1,), (outputs,)) and not grouped:
        raise ValueError(
            f"a scale of shape {shape} does not fit {inputs} inputs and {outputs} outputs; it is "
            f"(1,), ({outputs},) or ({outputs}, a divisor of {inputs})"
        )
