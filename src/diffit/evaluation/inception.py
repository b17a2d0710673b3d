"""Inception-v3 as the TensorFlow graph `inception-2015-12-05` has it (arXiv:1512.00567).

FID, sFID, KID and the Inception Score are defined on this network, which differs from later
Inception-v3 releases: average pools leave the padding out, the last block pools by maximum, and
there are 1008 outputs. Layers are named as in pytorch-fid's file; batch norm is folded into them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3
"""Batch norm's epsilon in the graph."""
OUTPUTS = 1008
LAYERS = {"64": 64, "192": 192, "768": 768, "mixed_7a": 1280, "2048": 2048}
"""Where pooled features are taken, and how many channels are there, from input to output."""
PARTIAL = "mixed_7a"
"""Files without the two last blocks end here."""
SPATIAL = 17 * 17 * 7


class Taps(NamedTuple):
    """What one pass over an image gives."""

    pools: dict[str, Tensor]
    """Per name in `LAYERS`, as far as the network goes: (B, D) averages over the positions."""
    spatial: Tensor
    """(B, 2023): the first 7 channels of `mixed_6/conv`, positions first, as sFID has them."""
    logits: Tensor | None
    """(B, 1008) without the bias, as the Inception Score is computed; None if partial."""


class Conv(nn.Conv2d):
    """Convolution, folded batch norm and ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class MixedA(nn.Module):
    """35 x 35 block: 1x1, 5x5, double 3x3 and pooled branches."""

    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(width, 64, 1)
        self.branch5x5_1 = Conv(width, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(width, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(width, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), five, three, self.branch_pool(average_pool(x))), 1)


class MixedB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(width, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)), 1)


class MixedC(nn.Module):
    """17 x 17 block with 7x7 convolutions split into 1x7 and 7x1; ``inner`` channels inside."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1 = Conv(768, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Conv(inner, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = Conv(768, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Conv(inner, inner, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Conv(inner, inner, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Conv(inner, 192, (1, 7), padding=(0, 3))
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat((self.branch1x1(x), seven, double, self.branch_pool(average_pool(x))), 1)


class MixedD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(768, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat((three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)), 1)


class MixedE(nn.Module):
    """8 x 8 block; the graph pools by average in its first copy and by maximum in its second."""

    def __init__(self, width: int, *, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Conv(width, 320, 1)
        self.branch3x3_1 = Conv(width, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(width, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = self.branch_pool(self.pool(x))
        return torch.cat(
            (
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                pooled,
            ),
            1,
        )

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else average_pool(x)


class Inception(nn.Module):
    """From (B, 3, 299, 299) in about [-1, 1] to `Taps`.

    Args:
        partial: build only up to Mixed_7a, for files that end there.
    """

    def __init__(self, *, partial: bool = False) -> None:
        super().__init__()
        self.partial = partial
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(128)
        self.Mixed_6c = MixedC(160)
        self.Mixed_6d = MixedC(160)
        self.Mixed_6e = MixedC(192)
        self.Mixed_7a = MixedD()
        if not partial:
            self.Mixed_7b = MixedE(1280, maximum=False)
            self.Mixed_7c = MixedE(2048, maximum=True)
            self.fc = nn.Linear(2048, OUTPUTS)

    def forward(self, x: Tensor) -> Taps:
        pools = {}
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        pools["64"] = x.mean((2, 3))
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        pools["192"] = x.mean((2, 3))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        # A block's output begins with its 1x1 branch, whose layer is called mixed_6/conv.
        spatial = x[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(x)
        pools["768"] = x.mean((2, 3))
        x = self.Mixed_7a(x)
        pools["mixed_7a"] = x.mean((2, 3))
        if self.partial:
            return Taps(pools, spatial, None)
        pools["2048"] = self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3))
        return Taps(pools, spatial, pools["2048"] @ self.fc.weight.T)


def average_pool(x: Tensor) -> Tensor:
    """3x3 average of the pixels that exist: at an edge the padding is not counted."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with `X.conv.weight` and `X.bn.*` as one with `X.weight` and `X.bias`.

    y = gamma (w x - mean) / sqrt(var + eps) + beta, computed in float64. Folded entries pass
    unchanged, in float32; an auxiliary head and batch counters are dropped.
    """
    folded: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer.endswith(".conv") and kind == "weight":
            layer = layer.removesuffix(".conv")
            gamma, beta, mean, variance = (
                state[f"{layer}.bn.{part}"].double()
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / torch.sqrt(variance + EPSILON)
            folded[f"{layer}.weight"] = (value.double() * scale[:, None, None, None]).float()
            folded[f"{layer}.bias"] = (beta - mean * scale).float()
        elif not layer.endswith(".bn"):
            folded[name] = value.float()
    return {name: value for name, value in folded.items() if not name.startswith("AuxLogits.")}
