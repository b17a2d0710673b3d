"""MDTv2, the masked diffusion transformer (Gao et al., arXiv:2303.14389, of 2024).

A DiT with relative position bias and long skips, that in training is also asked to predict the
noise from a part of the patches alone.
"""

from collections.abc import Iterable
from typing import Any, Literal, Self, cast

import torch
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
from diffit.nn.attention import RelativeBias, SelfAttention, gather_bias_among
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
from diffit.nn.norm import AdaptiveNorm
from diffit.nn.time_norm import TIME_NORMS, TimeNormKind, time_norm, time_rows


class MDTConfig(Settings):
    """Shape of an MDTv2; the defaults are XL/2 for 256 x 256 images.

    Other sizes, as (depth, width, heads): S (12, 384, 6), B (12, 768, 12), L (24, 1024, 16).
    """

    name: Literal["mdt"] = "mdt"
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
    """Blocks of encoder and decoder together."""
    decoder: Depth = 4
    """Blocks of the decoder, which always sees all tokens."""
    width: Width = 1152
    """Channels of a token."""
    heads: Width = 16
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Hidden units of the MLP, as a multiple of the width."""
    mask_ratio: Probability = 0.3
    """Least share of the patches hidden in masked training; 0 trains without masks."""
    mask_spread: Probability = 0.2
    """The share hidden lies uniformly between the least one and this much more."""
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

    @property
    def tokens(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def most_seen(self) -> int:
        """Patches that masked training shows at most."""
        return int(self.tokens * (1 - self.mask_ratio))

    @model_validator(mode="after")
    def check(self) -> Self:
        check_column(pair(self.size), self.patch, self.width, self.heads)
        check_features(self.time_features, self.time_embedding)
        check_hidden([self.width], self.mlp_ratio)
        check_modulation(self.time_into, self.modulation_norm)
        if self.decoder >= self.depth or (self.depth - self.decoder) % 2:
            raise ValueError(
                f"depth {self.depth} without decoder {self.decoder} must be an even number of "
                "blocks: each block of the encoder's first half has a partner in the second"
            )
        if self.mask_ratio and self.tokens * (1 - self.mask_ratio - self.mask_spread) < 1:
            raise ValueError(
                f"mask_ratio {self.mask_ratio:g} and mask_spread {self.mask_spread:g} may leave "
                f"none of the {self.tokens} patches; lower them"
            )
        return self


class MDTBlock(nn.Module):
    """DiT's block with relative position bias, of tokens joined with a long skip if there is one.

    Args:
        config: settings of the network.
        skip: whether it takes a skip.
    """

    def __init__(self, config: MDTConfig, *, skip: bool) -> None:
        super().__init__()
        width = config.width
        self.skip = Linear(2 * width, width) if skip else None
        self.position = RelativeBias(config.grid, config.heads)
        attention = SelfAttention(width, heads=config.heads)
        hidden = round(width * config.mlp_ratio)
        dropout: dict[str, Any] = {"dropout": config.dropout, "dropout_at": config.dropout_at}
        self.block = (
            AdaptiveBlock(
                attention,
                width,
                width,
                hidden=hidden,
                modulation_norm=config.modulation_norm,
                **dropout,
            )
            if config.tau is None
            else TimeNormBlock(
                attention,
                width,
                kind=cast(TimeNormKind, config.time_into),
                hidden=hidden,
                **dropout,
            )
        )

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor,
        skip: Tensor | None = None,
        keys: Tensor | None = None,
        places: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens.

        Args:
            tokens: (B, n, C).
            condition: (B, C), the sum of time and label embedding; or (R,) tau.
            skip: (B, n, C), for a block that takes one.
            keys: (B,) dropout keys; None for no dropout.
            places: (B, n) cells of the grid that the tokens stand for; None for the whole grid.
            valid: (B, n), False where a token only fills the row up; with ``places``.

        Returns:
            (B, n, C).
        """
        if self.skip is not None and skip is not None:
            tokens = self.skip(torch.cat([tokens, skip], dim=-1))
        bias = self.position(tokens.dtype) if places is None else self._among(places, valid)
        out: Tensor = self.block(tokens, condition, keys, bias)
        return out

    def _among(self, places: Tensor, valid: Tensor | None) -> Tensor:
        """(B, heads, n, n) bias between the cells ``places``; nobody attends where not valid."""
        bias = gather_bias_among(self.position.table, self.position.grid, places)
        if valid is not None:
            bias = bias.masked_fill(~valid[:, None, None], float("-inf"))
        return bias


class MDT(nn.Module):
    """F(x, time, label): patches; encoder with long skips; decoder that sees the input again."""

    def __init__(self, config: MDTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        width, outputs = config.width, config.channels * (2 if config.learned_variance else 1)
        self.patch = Linear((config.channels + config.condition_channels) * config.patch**2, width)
        # Sines and cosines at the start, learned from there on.
        self.position = nn.Parameter(sincos_grid(config.grid, width))
        self.position_out = nn.Parameter(sincos_grid(config.grid, width))
        self.mask_token = nn.Parameter(torch.empty(width))
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
        half = (config.depth - config.decoder) // 2
        self.down = nn.ModuleList(MDTBlock(config, skip=False) for _ in range(half))
        self.up = nn.ModuleList(MDTBlock(config, skip=True) for _ in range(half))
        self.decoder = nn.ModuleList(MDTBlock(config, skip=True) for _ in range(config.decoder))
        self.side = MDTBlock(config, skip=False)
        self.norm = (
            AdaptiveNorm(width)
            if config.tau is None
            else time_norm(width, cast(TimeNormKind, config.time_into))
        )
        self.modulation = Linear(width, 2 * width) if config.tau is None else None
        self.head = Linear(width, outputs * config.patch**2)
        if not config.mask_ratio:  # nothing would ever reach them
            self.mask_token.requires_grad_(False)
            self.side.requires_grad_(False)
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
        seen: Tensor | None = None,
    ) -> Tensor:
        """Predict from a noisy latent.

        Args:
            x: (B, C, H, W).
            time: (B,) noise level, as the formulation counts it.
            label: (B,) class, ``classes`` or None for no class.
            image: (B, condition_channels, H, W), where there are such channels.
            augment: not taken by this network.
            keys: (B,) dropout keys; None for no dropout.
            seen: (B, N) bool, the patches that the encoder is shown, from `choose_seen`; None for
                all of them.

        Returns:
            (B, C, H, W), or (B, 2 C, H, W) with a learned variance.
        """
        x = join_inputs(self.config, x, image, augment)
        tokens, condition = self._enter(x, time, label)
        if seen is None:
            mixed = self._encode(tokens, condition, keys) + self.position_out
        else:
            mixed = self._encode_masked(tokens, condition, keys, seen)
        for block in self.decoder:
            mixed = self._run(block, mixed, condition, tokens, keys)
        if self.modulation is None:
            mixed = self.norm(mixed, condition)
        else:
            mixed = self.norm(mixed, *self.modulation(F.silu(condition)).chunk(2, dim=-1))
        mixed = self.head(mixed)
        return unpatchify(mixed, self.config.grid, self.config.patch)

    def choose_seen(self, share: Tensor, noise: Tensor) -> Tensor:
        """Which patches an image shows in masked training; this network draws nothing itself.

        Args:
            share: (B,) uniform draws from (0, 1), for the share that is hidden.
            noise: (B, N) draws of any continuous law: the smallest ones are shown.

        Returns:
            (B, N) bool.
        """
        hidden = self.config.mask_ratio + self.config.mask_spread * share
        count = (self.config.tokens * (1 - hidden)).floor()
        rank = noise.argsort(dim=1).argsort(dim=1)
        return rank < count[:, None]

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks, in order; the last acts in masked training alone."""
        yield from (*self.down, *self.up, *self.decoder, self.side)

    def _encode(
        self,
        tokens: Tensor,
        condition: Tensor,
        keys: Tensor | None,
        places: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The encoder: the first half's outputs meet the second half's blocks in reverse."""
        skips = []
        for block in self.down:
            tokens = self._run(block, tokens, condition, None, keys, places, valid)
            skips.append(tokens)
        for block in self.up:
            tokens = self._run(block, tokens, condition, skips.pop(), keys, places, valid)
        return tokens

    def _encode_masked(
        self, tokens: Tensor, condition: Tensor, keys: Tensor | None, seen: Tensor
    ) -> Tensor:
        """The encoder on the patches ``seen``, and the side interpolator for all others.

        Images may show different numbers of patches: rows are filled up to the most there can be,
        with hidden patches to which nobody attends.
        """
        places = seen.int().argsort(dim=1, descending=True, stable=True)[:, : self.config.most_seen]
        valid = seen.gather(1, places)
        index = places[..., None].expand(-1, -1, tokens.shape[2])
        encoded = self._encode(tokens.gather(1, index), condition, keys, places, valid)
        mask = self.mask_token.to(encoded.dtype)
        whole = mask.expand_as(tokens).scatter(
            1, index, torch.where(valid[..., None], encoded, mask)
        )
        whole = whole + self.position_out
        guessed = self._run(self.side, whole, condition, None, keys)
        return torch.where(seen[..., None], whole, guessed)

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        return run(block, *inputs, checkpointed=self.activation_checkpointing)

    def _enter(self, x: Tensor, time: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens, and what the blocks are told: (B, C), time and label embedding, or (R,) tau."""
        tokens = self.patch(patchify(x, self.config.patch)) + self.position
        vector = label_vector(self.label, label, time.shape[0])
        if self.time is None:
            tau = time_rows(time, scale=self.config.tau_scale, shift=self.config.tau_shift)
            return (tokens if vector is None else tokens + vector[:, None]), tau
        token: Tensor = self.time(time)
        return tokens, (token if vector is None else token + vector)

    def _initialise(self) -> None:
        """The weights of an untrained network, whose output is exactly 0, as DiT's."""
        xavier_uniform(self)
        for layer in (self.time.hidden, self.time.out) if self.time is not None else ():
            nn.init.normal_(layer.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        close_gates(self)
        if self.modulation is not None:
            zero(self.modulation)
        zero(self.head)
