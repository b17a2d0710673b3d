"""Large-DiT: a DiT of LLaMA's blocks (Alpha-VLLM/LLaMA2-Accessory), which TerDiT makes ternary."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

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
    check_tokens,
    join_inputs,
    label_vector,
    pair,
    xavier_uniform,
    zero,
)
from diffit.nn.blocks import DropoutAt, run
from diffit.nn.dropout import number_dropouts
from diffit.nn.embed import LabelEmbedding, TimeEmbedding, TimeFeatures, patchify, unpatchify
from diffit.nn.linear import Linear
from diffit.nn.llama import LlamaBlock
from diffit.nn.norm import AdaptiveNorm
from diffit.nn.rotary import line_rotation

WIDEST_CONDITION = 1024
"""Wide networks keep the condition narrow: each block turns it into 6 vectors of the full width."""


class LargeDiTConfig(Settings):
    """Shape of a Large-DiT; the defaults are the 600M model for 256 x 256 images.

    Other sizes, as (depth, width, heads): 4.2B, named 3B without its modulation, (32, 3072, 32),
    7B (32, 4096, 32).
    """

    name: Literal["large-dit"] = "large-dit"
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
    depth: Depth = 16
    """Number of blocks."""
    width: Width = 1536
    """Channels of a token."""
    heads: Width = 32
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Hidden units of the plain MLP that the SwiGLU replaces, as a multiple of the width; it has
    two thirds of them."""
    hidden_multiple: Annotated[int, Field(ge=1, le=4096)] = 256
    """The hidden units are rounded up to a multiple of this."""
    qk_norm: bool = True
    """Layer norms of queries and keys."""
    modulation_norm: bool = False
    """RMS norm of what modulates a block, as TerDiT has it: for ternary layers."""
    learned_variance: bool = False
    """Predict a variance beside each channel, as the published models do."""
    time_features: Features = 256
    """Fixed features of the noise level, before the time embedding's two layers."""
    time_embedding: TimeFeatures = "dit"
    """Features of the noise level: DiT's, EDM's positional ones, or random Fourier features."""
    dropout: Probability = 0.0
    """Probability of dropout in training."""
    dropout_at: DropoutAt = "hidden"
    """Where dropout acts: on the SwiGLU's hidden units, or on the residual branches."""
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
    def tokens(self) -> int:
        """Number of tokens, which positions count row by row."""
        rows, columns = self.grid
        return rows * columns

    @property
    def hidden(self) -> int:
        """Hidden units of the SwiGLU, as LLaMA's code rounds them."""
        wanted = int(self.mlp_ratio / 4 * int(8 * self.width / 3))
        return -(-wanted // self.hidden_multiple) * self.hidden_multiple

    @property
    def condition(self) -> int:
        """Channels of the condition."""
        return min(self.width, WIDEST_CONDITION)

    @model_validator(mode="after")
    def check(self) -> Self:
        check_tokens(pair(self.size), self.patch, self.width, self.heads)
        check_features(self.time_features, self.time_embedding)
        if self.width // self.heads % 2:
            raise ValueError(
                f"width {self.width} and heads {self.heads} make heads of "
                f"{self.width // self.heads} channels, which turn in pairs; choose fewer heads"
            )
        if not self.hidden:
            raise ValueError(
                f"mlp_ratio {self.mlp_ratio:g} leaves width {self.width} no hidden unit; raise it"
            )
        return self


class LargeDiT(nn.Module):
    """F(x, time, label): patches, LLaMA blocks modulated by noise level and label, patches."""

    rotation: Tensor

    def __init__(self, config: LargeDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        width, condition = config.width, config.condition
        outputs = config.channels * (2 if config.learned_variance else 1)
        self.patch = Linear((config.channels + config.condition_channels) * config.patch**2, width)
        self.register_buffer("rotation", line_rotation(config.tokens, width // config.heads))
        self.time = TimeEmbedding(
            condition, features=config.time_features, kind=config.time_embedding
        )
        self.label = (
            LabelEmbedding(config.classes, condition, null=config.null_class)
            if config.classes
            else None
        )
        self.column = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = AdaptiveNorm(width)
        self.modulation = Linear(condition, 2 * width)
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
        tokens = self.patch(patchify(x, self.config.patch))
        condition = F.silu(self._condition(time, label))
        for block in self.column:
            tokens = run(
                block, tokens, condition, self.rotation, keys,
                checkpointed=self.activation_checkpointing,
            )  # fmt: skip
        tokens = self.norm(tokens, *self.modulation(condition).chunk(2, dim=-1))
        return unpatchify(self.head(tokens), self.config.grid, self.config.patch)

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks, in order."""
        return self.column

    def _condition(self, time: Tensor, label: Tensor | None) -> Tensor:
        """(B, T): time and label embedding."""
        vector = label_vector(self.label, label, time.shape[0])
        token: Tensor = self.time(time)
        return token if vector is None else token + vector

    def _initialise(self) -> None:
        """The weights of an untrained network, whose output is exactly 0."""
        xavier_uniform(self)
        for layer in (self.time.hidden, self.time.out):
            nn.init.normal_(layer.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        for block in self.column:
            zero(block.modulation)
        zero(self.modulation)
        zero(self.head)


def _block(config: LargeDiTConfig) -> LlamaBlock:
    return LlamaBlock(
        config.width,
        config.condition,
        heads=config.heads,
        hidden=config.hidden,
        qk_norm=config.qk_norm,
        modulation_norm=config.modulation_norm,
        dropout=config.dropout,
        dropout_at=config.dropout_at,
    )
