"""Image-space DiffiT: a U-shape of TMSA residual blocks (arXiv:2312.02139, Section 3.2, Fig. 4)."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffit.config import Settings
from diffit.networks.shared import (
    Classes,
    Condition,
    Depth,
    Features,
    Probability,
    Ratio,
    Side,
    Width,
    check_features,
    check_hidden,
    close_gates,
    join_inputs,
    label_vector,
    pair,
    xavier_uniform,
)
from diffit.nn.blocks import (
    DropoutAt,
    NormConv,
    NormOrder,
    diffit_block,
    downsample,
    from_windows,
    run,
    to_windows,
    upsample,
)
from diffit.nn.dropout import number_dropouts
from diffit.nn.embed import LabelEmbedding, TimeEmbedding, TimeFeatures
from diffit.nn.linear import Linear
from diffit.nn.norm import map_norm
from diffit.nn.time_norm import TIME_NORMS, time_rows
from diffit.nn.tmsa import TimeInto

HEAD_SCALE = 1e-5  # EDM's factor on the last convolution: an untrained network predicts nearly 0
LABEL_STD = 0.7071  # as strong as the sines and cosines that the label is added to
TOKEN_STD = 0.02  # of a label that is added to tokens

Levels = Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)]


class DiffiTConfig(Settings):
    """Shape of an image-space DiffiT; the defaults are the paper's for CIFAR-10."""

    name: Literal["diffit"] = "diffit"
    """Kind of the network."""
    size: Side | tuple[Side, Side] = 32
    """Height and width of the image."""
    channels: Width = 3
    """Channels of the image: 3 for colour, 1 for grey."""
    condition_channels: Condition = 0
    """Channels of the condition image, for restoration; `diffit train` sets it for a task."""
    classes: Classes = 0
    """Number of labels; 0 makes the network unconditional, as in the paper."""
    widths: Levels = (128, 256, 256)
    """Channels at each resolution, the finest first; each level halves the image."""
    blocks: Annotated[tuple[Depth, ...], Field(min_length=1, max_length=8)] = (2, 2, 2)
    """DiffiT blocks at each resolution; the last level is the bottleneck."""
    heads: Width = 4
    """Attention heads at every level."""
    window: Side = 4
    """Side of the attention windows; where the feature map is smaller, the map is the window."""
    mlp_ratio: Ratio = 4.0
    """Hidden units of the MLP, as a multiple of the width."""
    time_width: Width = 512
    """Channels of the time token."""
    time_features: Features = 128
    """Fixed features of the noise level, before the time embedding's two layers."""
    time_embedding: TimeFeatures = "positional"
    """Features of the noise level: EDM's positional ones, random Fourier, or DiT's."""
    time_into: TimeInto = "qkv"
    """Where the noise level enters a block: `qkv` is TMSA, `td-rms` and `td-ln` are norms that know
    it, as in DiMR, and leave out the time token; the others are ablations."""
    tau_scale: float = 0.25
    """What such norms are told is tau_scale * time + tau_shift, best within -4 .. 4."""
    tau_shift: float = 0.0
    """See tau_scale: 0.25 and 0 suit the times dimr and log_snr, 1 and 0 log4, 0.002 and -1 the
    index."""
    augment: bool = False
    """Take EDM's augmentation label, which training with augmentation needs."""
    learned_variance: bool = False
    """Predict a variance beside each channel."""
    dropout: Probability = 0.0
    """Probability of dropout in training: EDM has 0.13 for CIFAR-10 and 0.05 for FFHQ-64."""
    dropout_at: DropoutAt = "hidden"
    """Where dropout acts: on the MLP's hidden units, or on the residual branches."""
    norm_affine: bool = True
    """Learned scale and shift in the layer norms."""
    groups: Width = 32
    """Groups of the group norms; fewer where they do not divide the channels."""
    norm_order: NormOrder = "norm-swish"
    """Group norm before Swish, as Equation 9 has it, or after, as Figure 4 labels its box."""
    downsample: Literal["conv", "bilinear"] = "conv"
    """Halve by a 3x3 convolution of stride 2, or by bilinear resizing."""
    upsample: Literal["nearest", "transposed"] = "nearest"
    """Double by nearest neighbour and a 3x3 convolution, or by a transposed 4x4 convolution."""
    decoder_entry: Literal["conv3", "conv1", "none"] = "conv3"
    """The convolution between bottleneck and decoder."""
    skip: Literal["concat", "feed", "add"] = "concat"
    """Skip connections: concatenated and reduced, fed to the first block, or added."""
    head_silu: bool = False
    """SiLU between the last group norm and the last convolution, as EDM has it."""
    null_class: bool = True
    """Learn a vector for "no class", which guidance needs."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input."""
        return (self.channels, *pair(self.size))

    def grid(self, level: int) -> tuple[int, int]:
        """(rows, columns) of the feature map at a level, 0 the finest."""
        height, width = pair(self.size)
        return height >> level, width >> level

    def window_at(self, level: int) -> tuple[int, int]:
        """(rows, columns) of the windows at a level: ``window``, or the whole side if smaller."""
        height, width = self.grid(level)
        return min(self.window, height), min(self.window, width)

    @property
    def tau(self) -> tuple[float, float] | None:
        """Scale and shift of the time that the norms are told; None where they know no time."""
        return (self.tau_scale, self.tau_shift) if self.time_into in TIME_NORMS else None

    @model_validator(mode="after")
    def check(self) -> Self:
        levels = len(self.widths)
        if len(self.blocks) != levels:
            raise ValueError(
                f"blocks {self.blocks} and widths {self.widths} must have one number for each level"
            )
        for side in pair(self.size):
            if side % (1 << (levels - 1)):
                raise ValueError(
                    f"size {side} is no multiple of {1 << (levels - 1)}, as the {levels} levels of "
                    "widths need; choose one, or fewer levels"
                )
        for width in self.widths:
            if width % self.heads:
                raise ValueError(f"widths {self.widths} must be multiples of heads {self.heads}")
        for level in range(levels):
            self._check_window(level)
        check_features(self.time_features, self.time_embedding)
        check_hidden(self.widths, self.mlp_ratio)
        return self

    def _check_window(self, level: int) -> None:
        for side, window in zip(self.grid(level), self.window_at(level), strict=True):
            if side % window:
                raise ValueError(
                    f"window {self.window} does not divide the side {side} of level {level}; "
                    f"choose a divisor of {side}"
                )


class DiffiTResBlock(nn.Module):
    """u = Conv3x3(Swish(GN(x))), then a transformer block on u, plus x (paper, Eq. 9-10).

    Args:
        config: settings of the network.
        level: the resolution it works at, which sets its width, grid and windows.
        channels: channels of its input; a 1x1 convolution adapts x where they differ.
    """

    def __init__(self, config: DiffiTConfig, *, level: int, channels: int) -> None:
        super().__init__()
        width = config.widths[level]
        self.grid = config.grid(level)
        self.window = config.window_at(level)
        self.conv = NormConv(channels, width, groups=config.groups, order=config.norm_order)
        self.block = diffit_block(
            width,
            config.time_width,
            heads=config.heads,
            grid=self.grid,
            window=self.window,
            hidden=round(width * config.mlp_ratio),
            time_into=config.time_into,
            affine=config.norm_affine,
            dropout=config.dropout,
            dropout_at=config.dropout_at,
        )
        self.shortcut = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, channels, h, w) feature map, (B, T) time, dropout keys, to (B, width, h, w)."""
        # Norms and MLP treat each token alone: the whole block works on tokens in window order.
        windows = self.block(to_windows(self.conv(x), self.window), time, keys)
        y: Tensor = from_windows(windows, self.grid, self.window) + self.shortcut(x)
        return y


class Merge(nn.Module):
    """Join what comes up from a coarser level with the skip connection of this level.

    Args:
        kind: ``"concat"`` reduces to ``up`` channels by a 1x1 convolution, ``"feed"`` leaves the
            concatenation to the next block, ``"add"`` adds the skip, projected where widths differ.
        up, skip: channels of the two.
    """

    def __init__(self, kind: Literal["concat", "feed", "add"], *, up: int, skip: int) -> None:
        super().__init__()
        self.kind = kind
        self.channels = up + skip if kind == "feed" else up
        project = kind == "concat" or (kind == "add" and skip != up)
        inputs = up + skip if kind == "concat" else skip
        self.project = nn.Conv2d(inputs, up, 1) if project else nn.Identity()

    def forward(self, up: Tensor, skip: Tensor) -> Tensor:
        """(B, up, h, w) and (B, skip, h, w) to (B, channels, h, w)."""
        merged: Tensor
        if self.kind == "add":
            merged = up + self.project(skip)
        else:
            merged = self.project(torch.cat([up, skip], dim=1))
        return merged


class DiffiT(nn.Module):
    """F(x, time, label): convolution, encoder, bottleneck, decoder, convolution."""

    def __init__(self, config: DiffiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        widths, last = config.widths, len(config.widths) - 1
        self.time = (
            TimeEmbedding(
                config.time_width,
                features=config.time_features,
                kind=config.time_embedding,
                final_silu=True,
            )
            if config.tau is None
            else None
        )
        # Label and augmentation join the features of the noise level, or else the first tokens.
        joined = config.time_features if config.tau is None else widths[0]
        self.label = (
            LabelEmbedding(config.classes, joined, null=config.null_class)
            if config.classes
            else None
        )
        self.augment = Linear(9, joined, bias=False) if config.augment else None
        self.tokenizer = nn.Conv2d(
            config.channels + config.condition_channels, widths[0], 3, padding=1
        )
        self.encoder = nn.ModuleList(
            _stage(config, level, channels=widths[max(level - 1, 0)]) for level in range(last + 1)
        )
        self.down = nn.ModuleList(downsample(width, config.downsample) for width in widths[:-1])
        self.entry = _entry(config.decoder_entry, widths[-1])
        self.up = nn.ModuleList(upsample(width, config.upsample) for width in widths[1:])
        self.merge = nn.ModuleList(
            Merge(config.skip, up=widths[level + 1], skip=widths[level]) for level in range(last)
        )
        self.decoder = nn.ModuleList(
            _stage(config, level, channels=_merge_channels(merge))
            for level, merge in enumerate(self.merge)
        )
        self.norm = map_norm(widths[0], groups=config.groups)
        outputs = config.channels * (2 if config.learned_variance else 1)
        self.head = nn.Conv2d(widths[0], outputs, 3, padding=1)
        number_dropouts(self)
        self._initialise()

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        image: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Predict from a noisy image.

        Args:
            x: (B, C, H, W).
            time: (B,) noise level, as the formulation counts it.
            label: (B,) class, ``classes`` or None for no class.
            image: (B, condition_channels, H, W), where there are such channels.
            augment: (B, 9) augmentation label; None for zeros.
            keys: (B,) dropout keys; None for no dropout.

        Returns:
            (B, C, H, W), or (B, 2 C, H, W) with a learned variance.
        """
        x = join_inputs(self.config, x, image, augment if self.augment is None else None)
        x, token = self._enter(x, time, label, augment)
        skips = []
        for level, stage in enumerate(self.encoder):
            x = self._run(stage, x, token, keys)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        x = self.entry(x)
        for level in reversed(range(len(self.decoder))):
            x = self.merge[level](self.up[level](x), skips.pop())
            x = self._run(self.decoder[level], x, token, keys)
        x = self.norm(x)
        out: Tensor = self.head(F.silu(x) if self.config.head_silu else x)
        return out

    def blocks(self) -> Iterable[nn.Module]:
        """The residual blocks, in the order in which they act."""
        stages = [*self.encoder, *reversed(self.decoder)]
        return [block for stage in stages for block in stage]

    def _enter(
        self, x: Tensor, time: Tensor, label: Tensor | None, augment: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """First feature map, and what the blocks are told: a (B, T) time token or (R,) tau."""
        x = self.tokenizer(x)
        extra = label_vector(self.label, label, time.shape[0])
        if self.augment is not None and augment is not None:
            nudge = self.augment(augment.to(self.augment.weight.dtype))
            extra = nudge if extra is None else extra + nudge
        if self.time is None:
            tau = time_rows(time, scale=self.config.tau_scale, shift=self.config.tau_shift)
            return (x if extra is None else x + extra[..., None, None]), tau
        return x, self.time(time, extra)

    def _run(self, stage: nn.Module, x: Tensor, token: Tensor, keys: Tensor | None) -> Tensor:
        for block in stage.children():
            x = run(block, x, token, keys, checkpointed=self.activation_checkpointing)
        return x

    def _initialise(self) -> None:
        """Xavier-uniform as in EDM; the paper does not say."""
        xavier_uniform(self)
        if self.label is not None:
            std = TOKEN_STD if self.time is None else LABEL_STD
            nn.init.normal_(self.label.table.weight, std=std)
        close_gates(self)
        with torch.no_grad():
            self.head.weight.mul_(HEAD_SCALE)


def _stage(config: DiffiTConfig, level: int, *, channels: int) -> nn.ModuleList:
    """The blocks of one level; the first one changes the channels."""
    return nn.ModuleList(
        DiffiTResBlock(config, level=level, channels=config.widths[level] if place else channels)
        for place in range(config.blocks[level])
    )


def _entry(kind: Literal["conv3", "conv1", "none"], width: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    side = 3 if kind == "conv3" else 1
    return nn.Conv2d(width, width, side, padding=side // 2)


def _merge_channels(merge: nn.Module) -> int:
    assert isinstance(merge, Merge)
    return merge.channels
