"""DiT: transformer blocks modulated by adaLN-Zero (Peebles and Xie, arXiv:2212.09748)."""

from collections.abc import Iterable
from typing import Literal, Self, cast

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
    check_column,
    check_features,
    check_hidden,
    check_modulation,
    close_gates,
    join_inputs,
    label_vector,
    pair,
    xavier_uniform,
    zero,
)
from diffit.nn.attention import SelfAttention
from diffit.nn.blocks import AdaptiveBlock, DropoutAt, TimeNormBlock, run
from diffit.nn.dropout import number_dropouts
from diffit.nn.embed import (
    LabelEmbedding,
    TimeEmbedding,
    TimeFeatures,
    patchify,
    sincos_grid,
    unpatchify,
)
from diffit.nn.linear import Linear
from diffit.nn.norm import EPS, AdaptiveNorm
from diffit.nn.time_norm import TIME_NORMS, TimeNormKind, time_norm, time_rows


class DiTConfig(Settings):
    """Shape of a DiT; the defaults are XL/2 for 256 x 256 images.

    Other sizes, as (depth, width, heads): S (12, 384, 6), B (12, 768, 12), L (24, 1024, 16).
    """

    name: Literal["dit"] = "dit"
    """Kind of the network."""
    size: Side | tuple[Side, Side] = 32
    """Height and width of the latent: 32 for 256 x 256 images and a codec of factor 8."""
    channels: Width = 4
    """Channels of the latent: 4 for the Stable Diffusion autoencoder."""
    condition_channels: Condition = 0
    """Channels of the condition image, for restoration; `diffit train` sets it for a task."""
    classes: Classes = 0
    """Number of labels; 0 makes the network unconditional."""
    patch: Side = 2
    """Side of a patch, in latent pixels."""
    depth: Depth = 28
    """Number of blocks."""
    width: Width = 1152
    """Channels of a token."""
    heads: Width = 16
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Hidden units of the MLP, as a multiple of the width."""
    mlp_eps: float = Field(default=EPS, gt=0, lt=1)
    """Added to the variance in the norm before the MLP; the DiT of diffusers has 1e-5."""
    learned_variance: bool = False
    """Predict a variance beside each channel, as the published models do."""
    time_features: Features = 256
    """Fixed features of the noise level, before the time embedding's two layers."""
    time_embedding: TimeFeatures = "dit"
    """Features of the noise level: DiT's, EDM's positional ones, or random Fourier features."""
    time_into: Literal["norm", "td-rms", "td-ln"] = "norm"
    """Where the noise level enters: `norm` is adaLN-Zero, `td-rms` and `td-ln` are norms that know
    it, as in DiMR, and leave out the time token."""
    modulation_norm: bool = False
    """RMS norm of what a block is shifted, scaled and gated by, with time_into norm: for ternary
    layers, as in TerDiT."""
    tau_scale: float = 0.25
    """What such norms are told is tau_scale * time + tau_shift, best within -4 .. 4."""
    tau_shift: float = 0.0
    """See tau_scale: 0.25 and 0 suit the times dimr and log_snr, 1 and 0 log4, 0.002 and -1 the
    index."""
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
        """(rows, columns) of the token grid."""
        height, width = pair(self.size)
        return height // self.patch, width // self.patch

    @property
    def tau(self) -> tuple[float, float] | None:
        """Scale and shift of the time that the norms are told; None where they know no time."""
        return (self.tau_scale, self.tau_shift) if self.time_into in TIME_NORMS else None

    @model_validator(mode="after")
    def check(self) -> Self:
        check_column(pair(self.size), self.patch, self.width, self.heads)
        check_features(self.time_features, self.time_embedding)
        check_hidden([self.width], self.mlp_ratio)
        check_modulation(self.time_into, self.modulation_norm)
        return self


class DiT(nn.Module):
    """F(x, time, label): patches, blocks modulated by noise level and label, patches."""

    position: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        width, outputs = config.width, config.channels * (2 if config.learned_variance else 1)
        self.patch = Linear((config.channels + config.condition_channels) * config.patch**2, width)
        self.register_buffer("position", sincos_grid(config.grid, width))
        self.time = (
            TimeEmbedding(width, features=config.time_features, kind=config.time_embedding)
            if config.tau is None
            else None
        )
        self.label = (
            LabelEmbedding(config.classes, width, null=config.null_class)
            if config.classes
            else None
        )
        self.column = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = (
            AdaptiveNorm(width)
            if config.tau is None
            else time_norm(width, cast(TimeNormKind, config.time_into))
        )
        self.modulation = Linear(width, 2 * width) if config.tau is None else None
        self.head = Linear(width, outputs * config.patch**2)
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
        """Predict from a noisy latent.

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
        tokens, told = self._enter(x, time, label)
        for block in self.column:
            tokens = run(block, tokens, told, keys, checkpointed=self.activation_checkpointing)
        if self.modulation is None:
            tokens = self.norm(tokens, told)
        else:
            tokens = self.norm(tokens, *self.modulation(F.silu(told)).chunk(2, dim=-1))
        tokens = self.head(tokens)
        return unpatchify(tokens, self.config.grid, self.config.patch)

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks, in order."""
        return self.column

    def _enter(self, x: Tensor, time: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens, and what the blocks are told: (B, T), time and label embedding, or (R,) tau."""
        tokens = self.patch(patchify(x, self.config.patch)) + self.position
        vector = label_vector(self.label, label, time.shape[0])
        if self.time is None:
            tau = time_rows(time, scale=self.config.tau_scale, shift=self.config.tau_shift)
            return (tokens if vector is None else tokens + vector[:, None]), tau
        token: Tensor = self.time(time)
        return tokens, (token if vector is None else token + vector)

    def _initialise(self) -> None:
        """The weights of an untrained network, whose output is exactly 0 (Section 3.2)."""
        xavier_uniform(self)
        for layer in (self.time.hidden, self.time.out) if self.time is not None else ():
            nn.init.normal_(layer.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        close_gates(self)
        if self.modulation is not None:
            zero(self.modulation)
        zero(self.head)


def _block(config: DiTConfig) -> AdaptiveBlock | TimeNormBlock:
    attention = SelfAttention(config.width, heads=config.heads)
    hidden = round(config.width * config.mlp_ratio)
    if config.tau is not None:
        return TimeNormBlock(
            attention,
            config.width,
            kind=cast(TimeNormKind, config.time_into),
            hidden=hidden,
            dropout=config.dropout,
            dropout_at=config.dropout_at,
        )
    return AdaptiveBlock(
        attention,
        config.width,
        config.width,
        hidden=hidden,
        mlp_eps=config.mlp_eps,
        modulation_norm=config.modulation_norm,
        dropout=config.dropout,
        dropout_at=config.dropout_at,
    )
