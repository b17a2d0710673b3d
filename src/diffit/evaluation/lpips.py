"""LPIPS v0.1: distance of deep features, weighted as people judge (arXiv:1801.03924).

The heads (weights of the features) ship with the package; the backbone is the user's file, a
state dict in torchvision's layout: AlexNet, VGG-16 or SqueezeNet 1.1, trained on ImageNet.
"""

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional as F

from diffit.errors import CheckpointError, DataError, UsageError
from diffit.evaluation.weights import read_weights

Backbone = Literal["alex", "vgg", "squeeze"]
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the inputs, which are in [-1, 1]."""
HEADS = "lpips-heads.safetensors"


class Layer(NamedTuple):
    """A step through a backbone: a convolution, a pool or, in SqueezeNet, a fire module.

    Attributes:
        kind: conv, pool or fire.
        place: index in torchvision's `features`; of a pool its side.
        stride: of a convolution or a pool.
        pad: of a convolution.
        tap: whether what comes out is compared.
    """

    kind: str
    place: int
    stride: int = 1
    pad: int = 1
    tap: bool = False


BACKBONES: dict[str, tuple[Layer, ...]] = {
    "alex": (
        Layer("conv", 0, 4, 2, True), Layer("pool", 3, 2), Layer("conv", 3, 1, 2, True),
        Layer("pool", 3, 2), Layer("conv", 6, tap=True), Layer("conv", 8, tap=True),
        Layer("conv", 10, tap=True),
    ),
    "vgg": (
        Layer("conv", 0), Layer("conv", 2, tap=True), Layer("pool", 2, 2),
        Layer("conv", 5), Layer("conv", 7, tap=True), Layer("pool", 2, 2),
        Layer("conv", 10), Layer("conv", 12), Layer("conv", 14, tap=True), Layer("pool", 2, 2),
        Layer("conv", 17), Layer("conv", 19), Layer("conv", 21, tap=True), Layer("pool", 2, 2),
        Layer("conv", 24), Layer("conv", 26), Layer("conv", 28, tap=True),
    ),
    "squeeze": (
        Layer("conv", 0, 2, 0, True), Layer("pool", 3, 2), Layer("fire", 3),
        Layer("fire", 4, tap=True), Layer("pool", 3, 2), Layer("fire", 6),
        Layer("fire", 7, tap=True), Layer("pool", 3, 2), Layer("fire", 9, tap=True),
        Layer("fire", 10, tap=True), Layer("fire", 11, tap=True), Layer("fire", 12, tap=True),
    ),
}  # fmt: skip
LEAST = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Side of the smallest image that reaches the last layer."""


class Lpips(NamedTuple):
    """A backbone with its heads, from `open_lpips`.

    Attributes:
        name: lpips-alex, lpips-vgg or lpips-squeeze: figures of different ones do not compare.
        weights: convolutions of the backbone by torchvision's names.
        heads: one (1, C, 1, 1) weight for each compared layer.
        hash: sha256 of the file of weights.
    """

    name: str
    weights: Mapping[str, Tensor]
    heads: tuple[Tensor, ...]
    hash: str

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,) distances of images (B, 3, H, W), uint8 or floats in [0, 1]; 0 for equal ones."""
        backbone = self.name.removeprefix("lpips-")
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] not in (1, 3):
            raise DataError(
                f"images of shape {tuple(a.shape)} and {tuple(b.shape)} cannot be compared by "
                "LPIPS; both must be (B, 3, H, W), or (B, 1, H, W) for grey ones"
            )
        if min(a.shape[2:]) < LEAST[backbone]:
            raise DataError(
                f"{self.name} needs images of at least {LEAST[backbone]} x {LEAST[backbone]} "
                f"pixels, these have {a.shape[2]} x {a.shape[3]}; take PSNR"
            )
        with torch.no_grad():
            ours, theirs = (features(_scaled(x), backbone, self.weights) for x in (a, b))
            total = torch.zeros(len(a), device=a.device)
            for head, x, y in zip(self.heads, ours, theirs, strict=True):
                apart = (_unit(x) - _unit(y)).square() * head.to(x)
                total = total + apart.sum(1).flatten(1).mean(1)
        return total


def open_lpips(weights: Path, backbone: str = "alex") -> Lpips:
    """LPIPS on the user's backbone; refused if the file holds another network."""
    if backbone not in BACKBONES:
        raise UsageError(f"there is no LPIPS backbone {backbone!r}; choose from alex, vgg, squeeze")
    tensors, sha256 = read_weights(weights)
    needed = dict(_names(backbone))
    kept = {}
    for name, dims in needed.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim != dims:
            raise CheckpointError(
                f"{weights} does not fit: {name} is missing or of another shape; give a state dict "
                f"of torchvision's {backbone} trained on ImageNet"
            )
        kept[name] = tensor.float()
    network = Lpips(f"lpips-{backbone}", kept, load_heads(backbone), sha256)
    side = LEAST[backbone]
    try:
        whole = network(torch.zeros(1, 3, side, side), torch.ones(1, 3, side, side))
    except RuntimeError:  # layers of another width
        whole = torch.tensor([torch.nan])
    if not whole.isfinite().all():
        raise CheckpointError(
            f"{weights} does not fit: its layers have other shapes or are not finite; give a state "
            f"dict of torchvision's {backbone} trained on ImageNet"
        )
    return network


def load_heads(backbone: str) -> tuple[Tensor, ...]:
    """The published heads (richzhang/PerceptualSimilarity, BSD-2-Clause), finest layer first."""
    tensors = load((files("diffit") / "assets" / HEADS).read_bytes())
    count = sum(layer.tap for layer in BACKBONES[backbone])
    return tuple(tensors[f"{backbone}.{i}"] for i in range(count))


def features(x: Tensor, backbone: str, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """What each compared layer of a backbone says of normalised images."""
    taps = []
    for layer in BACKBONES[backbone]:
        x = _STEPS[layer.kind](x, layer, weights)
        if layer.tap:
            taps.append(x)
    return taps


def _conv(x: Tensor, layer: Layer, weights: Mapping[str, Tensor]) -> Tensor:
    return _apply(x, weights, f"features.{layer.place}", layer.stride, layer.pad)


def _pool(x: Tensor, layer: Layer, weights: Mapping[str, Tensor]) -> Tensor:
    # SqueezeNet 1.1 alone rounds the size up, and alone pools outside of the convolutions' pads.
    squeeze = "features.3.squeeze.weight" in weights
    return F.max_pool2d(x, layer.place, layer.stride, ceil_mode=squeeze)


def _fire(x: Tensor, layer: Layer, weights: Mapping[str, Tensor]) -> Tensor:
    name = f"features.{layer.place}"
    x = _apply(x, weights, f"{name}.squeeze", 1, 0)
    narrow = _apply(x, weights, f"{name}.expand1x1", 1, 0)
    return torch.cat((narrow, _apply(x, weights, f"{name}.expand3x3", 1, 1)), 1)


_STEPS: dict[str, Callable[[Tensor, Layer, Mapping[str, Tensor]], Tensor]] = {
    "conv": _conv,
    "pool": _pool,
    "fire": _fire,
}


def _apply(x: Tensor, weights: Mapping[str, Tensor], name: str, stride: int, pad: int) -> Tensor:
    weight, bias = weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x)
    return F.relu(F.conv2d(x, weight, bias, stride, pad))


def _names(backbone: str) -> list[tuple[str, int]]:
    """Names of the tensors that a backbone needs, and their dimensions."""
    parts = []
    for layer in BACKBONES[backbone]:
        inner = (".squeeze", ".expand1x1", ".expand3x3") if layer.kind == "fire" else ("",)
        if layer.kind != "pool":
            parts += [f"features.{layer.place}{part}" for part in inner]
    return [(f"{p}.{kind}", dims) for p in parts for kind, dims in (("weight", 4), ("bias", 1))]


def _scaled(x: Tensor) -> Tensor:
    value = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if not value.isfinite().all():
        raise DataError("the images hold values that are not finite")
    mean, std = (torch.tensor(v, device=x.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (2 * value.clamp(0, 1).expand(-1, 3, -1, -1) - 1 - mean) / std


def _unit(x: Tensor) -> Tensor:
    # The published code adds its epsilon outside of the root.
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
