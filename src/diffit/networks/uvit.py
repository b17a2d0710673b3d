"""U-ViT: noise level and class are tokens like the patches, and long skips join the two halves.

Bao et al., "All are Worth Words", arXiv:2209.12152, Section 3 and Figure 1.
"""

from collections.abc import Iterable
from typing import Literal, Self, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from diffit.config import Settings
from diffit.networks.shared import (
    Classes,
    Condition,
    Depth,
    Probability,
    Ratio,
    Side,
    Width,
    check_hidden,
    check_tokens,
    join_inputs,
    label_vector,
    pair,
)
from diffit.nn.attention import SelfAttention
from diffit.nn.blocks import MLP, DropoutAt, run
from diffit.nn.dropout import Dropout, number_dropouts
from diffit.nn.embed import LabelEmbedding, TimeEmbedding, dit_features, patchify, unpatchify
from diffit.nn.linear import Linear
from diffit.nn.time_norm import TIME_NORMS, TimeNormKind, time_norm, time_rows


class UViTConfig(Settings):
    """Shape of a U-ViT; the defaults are L/2 for 256 x 256 images.

    Sizes of the paper, as (depth, width, heads): S (13, 512, 8), S-deep (17, 512, 8),
    M (17, 768, 12), L (21, 1024, 16), H (29, 1152, 16).
    """

    name: Literal["uvit"] = "uvit"
    """Kind of the network."""
    size: Side | tuple[Side, Side] = 32
    """Height and width of the image or latent."""
    channels: Width = 4
    """Channels of the image (3 for colour) or latent (4 for the Stable Diffusion autoencoder)."""
    condition_channels: Condition = 0
    """Channels of the condition image, for restoration; `diffit train` sets it for a task."""
    classes: Classes = 0
    """Number of labels; 0 makes the network unconditional."""
    patch: Side = 2
    """Side of a patch, in pixels of the input."""
    depth: Depth = 21
    """Number of blocks, odd: as many before the middle one as after it."""
    width: Width = 1024
    """Channels of a token."""
    heads: Width = 16
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Hidden units of the MLP, as a multiple of the width."""
    qkv_bias: bool = False
    """Learned biases of queries, keys and values."""
    time_mlp: bool = False
    """Two layers between the noise level's sines and its token, which else are the same."""
    time_into: Literal["token", "td-rms", "td-ln"] = "token"
    """Where the noise level enters: as a token, or through norms that know it, as in DiMR."""
    tau_scale: float = 0.25
    """What such norms are told is tau_scale * time + tau_shift, best within -4 .. 4."""
    tau_shift: float = 0.0
    """See tau_scale: 0.25 and 0 suit the times dimr and log_snr, 1 and 0 log4, 0.002 and -1 the
    index."""
    skip: bool = True
    """Long skip connections, concatenated and reduced before each block of the second half."""
    conv: bool = True
    """A last 3x3 convolution, against seams between patches; the published H has none."""
    learned_variance: bool = False
    """Predict a variance beside each channel."""
    dropout: Probability = 0.0
    """Probability of dropout in training."""
    dropout_at: DropoutAt = "hidden"
    """Where dropout acts: on the MLP's hidden units, or on the residual branches."""
    null_class: bool = True
    """Learn a vector for "no class", which guidance needs."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input."""
        return (self.channels, *pair(self.size))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the grid of patches."""
        height, width = pair(self.size)
        return height // self.patch, width // self.patch

    @property
    def extra(self) -> int:
        """Tokens before those of the patches: the class and the noise level, where they are any."""
        return bool(self.classes) + (self.time_into == "token")

    @property
    def tau(self) -> tuple[float, float] | None:
        """Scale and shift of the time that the norms are told; None where they know no time."""
        return (self.tau_scale, self.tau_shift) if self.time_into in TIME_NORMS else None

    @model_validator(mode="after")
    def check(self) -> Self:
        check_tokens(pair(self.size), self.patch, self.width, self.heads)
        check_hidden([self.width], self.mlp_ratio)
        if self.time_mlp and self.tau is not None:
            raise ValueError(
                f"time_mlp makes a token, but time_into {self.time_into!r} has none; leave it out"
            )
        if self.depth % 2 == 0:
            raise ValueError(f"depth {self.depth} is even; a U-ViT has one block in the middle")
        return self


class UViTBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), of x joined with a long skip if there is one.

    Args:
        config: settings of the network.
        skip: whether it takes a skip.
    """

    def __init__(self, config: UViTConfig, *, skip: bool) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        within, after = (dropout, 0.0) if config.dropout_at == "hidden" else (0.0, dropout)
        self.skip = Linear(2 * width, width) if skip else None
        # Norms with PyTorch's eps, 1e-5: unlike DiT's, those of this lineage left it as it was.
        self.norm1 = _norm(config)
        self.attention = SelfAttention(
            width, heads=config.heads, qkv_bias=config.qkv_bias, extra=config.extra
        )
        self.dropout1 = Dropout(after)
        self.norm2 = _norm(config)
        self.mlp = MLP(width, round(width * config.mlp_ratio), dropout=within, exact=True)
        self.dropout2 = Dropout(after)

    def forward(
        self,
        tokens: Tensor,
        skip: Tensor | None,
        keys: Tensor | None = None,
        tau: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens.

        Args:
            tokens: (B, N, C).
            skip: (B, N, C), for a block that takes one.
            keys: (B,) dropout keys; None for no dropout.
            tau: (B,) or (1,), for norms that know the time.

        Returns:
            (B, N, C).
        """
        if self.skip is not None and skip is not None:
            tokens = self.skip(torch.cat([tokens, skip], dim=-1))
        told = () if tau is None else (tau,)
        tokens = tokens + self.dropout1(self.attention(self.norm1(tokens, *told)), keys)
        branch = self.mlp(self.norm2(tokens, *told), None, keys)
        mixed: Tensor = tokens + self.dropout2(branch, keys)
        return mixed


def _norm(config: UViTConfig) -> nn.Module:
    if config.tau is None:
        return nn.LayerNorm(config.width)
    return time_norm(config.width, cast(TimeNormKind, config.time_into))


class UViT(nn.Module):
    """F(x, time, label): tokens of class, noise level and patches; blocks with long skips."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        width, outputs = config.width, config.channels * (2 if config.learned_variance else 1)
        self.patch = Linear((config.channels + config.condition_channels) * config.patch**2, width)
        cells = config.grid[0] * config.grid[1]
        self.position = nn.Parameter(torch.empty(config.extra + cells, width))
        self.time = (
            TimeEmbedding(width, features=width, hidden=4 * width, kind="dit")
            if config.time_mlp
            else None
        )
        self.label = (
            LabelEmbedding(config.classes, width, null=config.null_class)
            if config.classes
            else None
        )
        half = config.depth // 2
        self.down = nn.ModuleList(UViTBlock(config, skip=False) for _ in range(half))
        self.middle = UViTBlock(config, skip=False)
        self.up = nn.ModuleList(UViTBlock(config, skip=config.skip) for _ in range(half))
        self.norm = _norm(config)
        self.head = Linear(width, outputs * config.patch**2)
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1) if config.conv else nn.Identity()
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
        """Predict from a noisy image or latent.

        Args:
            x: (B, C, H, W).
            time: (B,) noise level, as the formulation counts it.
            label: (B,) class, ``classes`` or None for no class.
            image: (B, condition_channels, H, W), where there are such channels.
            augment: not taken by this network.
            keys: (B,) dropout keys; None for no dropout.

        Returns:
            (B, C, H, W), or (B, 2 C, H, W) with a learned variance.
        """
        x = join_inputs(self.config, x, image, augment)
        patches = self.patch(patchify(x, self.config.patch))
        conditions = [row[:, None].to(patches.dtype) for row in self._conditions(time, label)]
        tokens = torch.cat([*conditions, patches], dim=1) + self.position
        told: tuple[Tensor, ...] = ()
        if self.config.tau is not None:
            scale, shift = self.config.tau
            told = (time_rows(time, scale=scale, shift=shift),)
        skips = []
        for block in self.down:
            tokens = self._run(block, tokens, None, keys, *told)
            skips.append(tokens)
        tokens = self._run(self.middle, tokens, None, keys, *told)
        for block in self.up:
            tokens = self._run(block, tokens, skips.pop(), keys, *told)
        tokens = self.head(self.norm(tokens, *told)[:, self.config.extra :])
        out: Tensor = self.conv(unpatchify(tokens, self.config.grid, self.config.patch))
        return out

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks, in order."""
        yield from self.down
        yield self.middle
        yield from self.up

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        return run(block, *inputs, checkpointed=self.activation_checkpointing)

    def _conditions(self, time: Tensor, label: Tensor | None) -> list[Tensor]:
        """(B, D) of the class and of the noise level, in this order, as far as they are tokens."""
        vector = label_vector(self.label, label, time.shape[0])
        tokens = [] if vector is None else [vector]
        if self.config.tau is None:
            tokens.append(
                dit_features(time, self.config.width) if self.time is None else self.time(time)
            )
        return tokens

    def _initialise(self) -> None:
        """Normal weights of standard deviation 0.02; patches and convolution keep PyTorch's."""
        nn.init.trunc_normal_(self.position, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and layer is not self.patch:
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
