"""Latent DiffiT: a column of TMSA blocks over patches (arXiv:2312.02139, Section 3.3, Figure 3)."""

from collections.abc import Iterable
from typing import Literal, Self

import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from diffit.config import Settings
from diffit.networks.shared import (
    Classes,
    Depth,
    Features,
    Probability,
    Ratio,
    Side,
    Width,
    check_column,
    check_features,
    check_hidden,
    check_inputs,
    check_unlabelled,
    close_gates,
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
    """Where the time token enters a block: `qkv` is TMSA, the others are ablations."""
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

    @model_validator(mode="after")
    def check(self) -> Self:
        check_column(pair(self.size), self.patch, self.width, self.heads)
        check_features(self.time_features, self.time_embedding)
        check_hidden([self.width], self.mlp_ratio)
        if self.position == "rotary" and self.width // self.heads % 4:
            raise ValueError(
                f"heads of {self.width // self.heads} channels cannot turn on a grid; "
                "with position 'rotary' 4 must divide width / heads"
            )
        for wrong, field, value in (
            (self.time_into == "bias", "position", "rotary"),
            (self.time_into in ("mlp", "norm"), "mlp", "swiglu"),
            (self.time_into == "norm", "norm", "rms"),
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
        self.patch = Linear(config.channels * config.patch**2, width)
        table = sincos_grid(config.grid, width) if config.position == "bias" else None
        self.register_buffer("position", table)
        self.time = TimeEmbedding(width, features=config.time_features, kind=config.time_embedding)
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
                mlp=config.mlp,
                norm=config.norm,
                affine=config.norm_affine,
                dropout=config.dropout,
                dropout_at=config.dropout_at,
            )
            for _ in range(config.depth)
        )
        self.norm = token_norm(width, affine=config.norm_affine, kind=config.norm)
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
            image, augment: not taken by this network.
            keys: (B,) dropout keys; None for no dropout.

        Returns:
            (B, C, H, W), or (B, 2 C, H, W) with a learned variance.
        """
        check_inputs(self.config.shape, x, image, augment)
        tokens = self.patch(patchify(x, self.config.patch))
        tokens = tokens if self.position is None else tokens + self.position
        condition = self._condition(time, label)
        for block in self.column:
            tokens = run(block, tokens, condition, keys, checkpointed=self.activation_checkpointing)
        tokens = self.norm(tokens)
        tokens = self.head(F.silu(tokens) if self.config.head_silu else tokens)
        return unpatchify(tokens, self.config.grid, self.config.patch)

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks, in order."""
        return self.column

    def _condition(self, time: Tensor, label: Tensor | None) -> Tensor:
        """(B, T): the sum of time and label embedding."""
        token: Tensor = self.time(time)
        if self.label is None:
            check_unlabelled(label)
            return token
        vector: Tensor = self.label(label, len(time))
        return token + vector

    def _initialise(self) -> None:
        """The weights of an untrained network, whose output is exactly 0, as in the release."""
        xavier_uniform(self)
        for layer in (self.time.hidden, self.time.out):
            nn.init.normal_(layer.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        close_gates(self)
        zero(self.head)
