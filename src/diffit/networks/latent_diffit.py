"""Latent DiffiT: a column of TMSA blocks over patches (arXiv:2312.02139, Section 3.3, Figure 3)."""

from collections.abc import Iterable
from typing import Literal, Self, cast

import torch.nn.functional as F
from pydantic import model_validator
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
from diffit.nn.blocks import DropoutAt, MLPKind, diffit_block, run, swiglu_hidden
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
from diffit.nn.norm import TokenNorm, token_norm
from diffit.nn.time_norm import TIME_NORMS, TimeNormKind, time_norm, time_rows
from diffit.nn.tmsa import TimeInto


class LatentDiffiTConfig(Settings):
    """Shape of a latent DiffiT; the defaults are the paper's XL/2 for 256 x 256 images.

    Other sizes, as (depth, width, heads): S (12, 384, 6), B (12, 768, 12), L (24, 1024, 16).
    """

    name: Literal["latent-diffit"] = "latent-diffit"
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
    """Number of blocks; the release has 28, the paper's text says 30."""
    width: Width = 1152
    """Channels of a token."""
    heads: Width = 16
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Hidden units of the MLP, as a multiple of the width."""
    position: Literal["bias", "rotary"] = "bias"
    """How tokens know their place: a fixed table and learned biases, or rotary embedding alone."""
    qk_norm: bool = False
    """RMS norm of queries and keys, which keeps attention stable in bfloat16."""
    mlp: MLPKind = "gelu"
    """The MLP of a block; swiglu has three matrices, of two thirds of the hidden units."""
    norm: TokenNorm = "layer"
    """Norm before attention, MLP and head."""
    learned_variance: bool = False
    """Predict a variance beside each channel, as the published models do."""
    time_features: Features = 256
    """Fixed features of the noise level, before the time embedding's two layers."""
    time_embedding: TimeFeatures = "dit"
    """Features of the noise level: DiT's, EDM's positional ones, or random Fourier features."""
    time_into: TimeInto = "qkv"
    """Where the noise level enters a block: `qkv` is TMSA, `td-rms` and `td-ln` are norms that know
    it, as in DiMR, and leave out the time token; the others are ablations."""
    modulation_norm: bool = False
    """RMS norm of what a block is shifted, scaled and gated by, with time_into norm: for ternary
    layers, as in TerDiT."""
    tau_scale: float = 0.25
    """What such norms are told is tau_scale * time + tau_shift, best within -4 .. 4."""
    tau_shift: float = 0.0
    """See tau_scale: 0.25 and 0 suit the times dimr and log_snr, 1 and 0 log4, 0.002 and -1 the
    index."""
    norm_affine: bool = False
    """Learned scale and shift in the norms."""
    head_silu: bool = True
    """SiLU before the last linear layer, as in the release, though in no figure."""
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
        """(rows, columns) of the token grid, which is also the window of attention."""
        height, width = pair(self.size)
        return height // self.patch, width // self.patch

    @property
    def hidden(self) -> int:
        """Hidden units of the MLP."""
        if self.mlp == "swiglu":
            return swiglu_hidden(self.width, self.mlp_ratio)
        return round(self.width * self.mlp_ratio)

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
        if self.position == "rotary" and self.width // self.heads % 4:
            raise ValueError(
                f"heads of {self.width // self.heads} channels cannot turn on a grid; "
                "with position 'rotary' 4 must divide width / heads"
            )
        for wrong, field, value in (
            (self.time_into == "bias", "position", "rotary"),
            (self.time_into in ("mlp", "norm"), "mlp", "swiglu"),
            (self.time_into == "norm" or self.tau is not None, "norm", "rms"),
        ):
            if wrong and getattr(self, field) == value:
                raise ValueError(f"{field} {value!r} does not go with time_into {self.time_into!r}")
        return self


class LatentDiffiT(nn.Module):
    """F(x, time, label): patches, blocks in which TMSA reads noise level and label, patches.

    The defaults are the release; DiffiT-v2 is `position` rotary, `qk_norm`, `mlp` swiglu, `norm`
    rms. The one window of attention is the whole grid. Parameters are named one-to-one with those
    of the published checkpoints, see `diffit.convert`.
    """

    position: Tensor | None

    def __init__(self, config: LatentDiffiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        width, outputs = config.width, config.channels * (2 if config.learned_variance else 1)
        self.patch = Linear((config.channels + config.condition_channels) * config.patch**2, width)
        table = sincos_grid(config.grid, width) if config.position == "bias" else None
        self.register_buffer("position", table)
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
        self.column = nn.ModuleList(
            diffit_block(
                width,
                width,
                heads=config.heads,
                grid=config.grid,
                hidden=config.hidden,
                time_into=config.time_into,
                position=config.position,
                qk_norm=config.qk_norm,
                modulation_norm=config.modulation_norm,
                mlp=config.mlp,
                norm=config.norm,
                affine=config.norm_affine,
                dropout=config.dropout,
                dropout_at=config.dropout_at,
            )
            for _ in range(config.depth)
        )
        self.norm = (
            token_norm(width, affine=config.norm_affine, kind=config.norm)
            if config.tau is None
            else time_norm(width, cast(TimeNormKind, config.time_into))
        )
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
        tokens = self.norm(tokens) if self.time is not None else self.norm(tokens, told)
        tokens = self.head(F.silu(tokens) if self.config.head_silu else tokens)
        return unpatchify(tokens, self.config.grid, self.config.patch)

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks, in order."""
        return self.column

    def _enter(self, x: Tensor, time: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens, and what the blocks are told: (B, T), time and label embedding, or (R,) tau."""
        tokens = self.patch(patchify(x, self.config.patch))
        tokens = tokens if self.position is None else tokens + self.position
        vector = label_vector(self.label, label, time.shape[0])
        if self.time is None:
            tau = time_rows(time, scale=self.config.tau_scale, shift=self.config.tau_shift)
            return (tokens if vector is None else tokens + vector[:, None]), tau
        token: Tensor = self.time(time)
        return tokens, (token if vector is None else token + vector)

    def _initialise(self) -> None:
        """The weights of an untrained network, whose output is exactly 0, as in the release."""
        xavier_uniform(self)
        for layer in (self.time.hidden, self.time.out) if self.time is not None else ():
            nn.init.normal_(layer.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        close_gates(self)
        zero(self.head)
