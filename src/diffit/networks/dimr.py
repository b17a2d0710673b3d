"""DiMR: a transformer on a coarse grid, ConvNeXt on each finer one (arXiv:2406.09416).

Every branch reads the whole image in patches of its own size, hears the noise level through its
norms alone (`diffit.nn.time_norm`), predicts at its own resolution, and hands the output of all its
blocks to the next, finer branch.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self, cast

import torch
from einops import rearrange
from pydantic import Field, model_validator
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
    check_unlabelled,
    join_inputs,
    pair,
)
from diffit.nn.attention import SelfAttention
from diffit.nn.blocks import GLU, DropoutAt, run
from diffit.nn.dropout import Dropout, number_dropouts
from diffit.nn.embed import LabelEmbedding, PositionTable, patchify
from diffit.nn.linear import Linear
from diffit.nn.time_norm import TimeLayerNorm, TimeNormKind, time_norm, time_rows

Levels = Annotated[tuple[Width, ...], Field(min_length=1, max_length=4)]


class DiMRConfig(Settings):
    """Shape of a DiMR; the defaults are XL/2R for 256 x 256 images."""

    name: Literal["dimr"] = "dimr"
    """Kind of the network."""
    size: Side | tuple[Side, Side] = 32
    """Height and width of the latent: 32 for 256 x 256 images and a codec of factor 8."""
    channels: Width = 4
    """Channels of the latent: 4 for the Stable Diffusion autoencoder."""
    condition_channels: Condition = 0
    """Channels of the condition image, for restoration; `diffit train` sets it for a task."""
    classes: Classes = 0
    """Number of labels; 0 makes the network unconditional."""
    widths: Levels = (960, 480)
    """Channels of each branch, the coarsest first; each next one doubles the resolution."""
    depths: Annotated[tuple[Depth, ...], Field(min_length=1, max_length=4)] = (39, 20)
    """Blocks of each branch; an even number is rounded up: 20 makes 10, 1 and 10."""
    heads: Width = 16
    """Attention heads of the transformer, which is the coarsest branch."""
    mlp_ratio: Ratio = 2.0
    """Hidden units of the gated MLP, as a multiple of the width."""
    kernel: Annotated[int, Field(ge=1, le=63)] = 7
    """Side of the depthwise convolutions; odd."""
    norm: TimeNormKind = "td-rms"
    """The norm of the blocks: time-dependent RMS norm, as published, or layer norm."""
    tau_scale: float = 0.25
    """What the norms are told is tau_scale * time + tau_shift, best within -4 .. 4."""
    tau_shift: float = 0.0
    """See tau_scale: 0.25 and 0 suit the times dimr and log_snr, 0.002 and -1 the index."""
    learned_variance: bool = False
    """Predict a variance beside each channel; no published DiMR does."""
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
    def resolutions(self) -> int:
        """How many resolutions the network predicts at."""
        return len(self.widths)

    @property
    def tau(self) -> tuple[float, float]:
        """Scale and shift of the time that the norms are told."""
        return self.tau_scale, self.tau_shift

    def stride(self, branch: int) -> int:
        """Side of a branch's patches: 1 for the last."""
        return 1 << (len(self.widths) - 1 - branch)

    def grid(self, branch: int) -> tuple[int, int]:
        """(rows, columns) of a branch's tokens."""
        height, width = pair(self.size)
        return height // self.stride(branch), width // self.stride(branch)

    @model_validator(mode="after")
    def check(self) -> Self:
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths {self.depths} and widths {self.widths} must have one number for each "
                "branch"
            )
        for side in pair(self.size):
            if side % self.stride(0):
                raise ValueError(
                    f"size {side} is no multiple of {self.stride(0)}, the patch of the coarsest of "
                    f"{len(self.widths)} branches"
                )
        if self.widths[0] % self.heads:
            raise ValueError(
                f"widths {self.widths} must start with a multiple of heads {self.heads}"
            )
        if not self.kernel % 2:
            raise ValueError(f"kernel {self.kernel} is even; take an odd one, as 7")
        check_hidden(self.widths, self.mlp_ratio)
        return self


class GatedBlock(nn.Module):
    """x + mix(x), then x + GLU(norm(x)): what DiMR's two kinds of blocks have in common.

    Args:
        config: settings of the network.
        width: channels C of a token.
        grid: (rows, columns) of the tokens, for a ConvNeXt block; None for a transformer block.
    """

    def __init__(self, config: DiMRConfig, width: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        rate = config.dropout
        within, after = (rate, 0.0) if config.dropout_at == "hidden" else (0.0, rate)
        self.grid = grid
        self.attention: SelfAttention | None = None
        if grid is None:
            self.norm1 = time_norm(width, config.norm)
            # The class is a token of no place.
            extra = 1 if config.classes else 0
            self.attention = SelfAttention(width, heads=config.heads, qkv_bias=False, extra=extra)
        else:
            side = config.kernel
            self.conv = nn.Conv2d(width, width, side, padding=side // 2, groups=width)
        self.dropout1 = Dropout(after)
        self.norm2 = time_norm(width, config.norm)
        self.glu = GLU(width, round(width * config.mlp_ratio), activation="gelu", dropout=within)
        self.dropout2 = Dropout(after)

    def forward(self, tokens: Tensor, tau: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, N, C) tokens, (B,) or (1,) tau and (B,) dropout keys to (B, N, C)."""
        tokens = tokens + self.dropout1(self._mixed(tokens, tau), keys)
        mixed: Tensor = tokens + self.dropout2(self.glu(self.norm2(tokens, tau), keys=keys), keys)
        return mixed

    def _mixed(self, tokens: Tensor, tau: Tensor) -> Tensor:
        if self.attention is not None:
            attended: Tensor = self.attention(self.norm1(tokens, tau))
            return attended
        return to_tokens(self.conv(to_map(tokens, self.grid or (1, 1))))


class Upsampler(nn.Module):
    """All features of a branch as what they add to the tokens of the next, twice as fine.

    Norm, one linear layer, depth to space, norm. Its matrix is the largest of the network.

    Args:
        inputs: channels of the features together.
        width: channels of the finer branch.
        grid: (rows, columns) of the coarser one.
    """

    def __init__(self, inputs: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.norm1 = TimeLayerNorm(inputs)
        self.reduce = Linear(inputs, 4 * width)
        self.norm2 = TimeLayerNorm(width)

    def forward(self, features: Tensor, tau: Tensor) -> Tensor:
        """(B, N, inputs) and (B,) or (1,) tau to (B, 4 N, width)."""
        cells = self.reduce(self.norm1(features, tau))
        fine = rearrange(
            cells, "b (h w) (p q c) -> b (h p w q) c", h=self.grid[0], w=self.grid[1], p=2, q=2
        )
        out: Tensor = self.norm2(fine, tau)
        return out


class Branch(nn.Module):
    """One resolution: patches, blocks in a U-shape with skips, a prediction on its grid.

    Args:
        config: settings of the network.
        place: 0 for the coarsest branch, the only one that is a transformer.
    """

    def __init__(self, config: DiMRConfig, place: int) -> None:
        super().__init__()
        width, stride, last = config.widths[place], config.stride(place), len(config.widths) - 1
        half = config.depths[place] // 2
        self.grid = config.grid(place)
        self.stride = stride
        self.finest = place == last
        self.patch = Linear((config.channels + config.condition_channels) * stride**2, width)
        self.position = PositionTable(self.grid, width)
        self.upsample = (
            Upsampler(_features(config, place - 1), width, config.grid(place - 1))
            if place
            else None
        )
        self.label = (
            LabelEmbedding(config.classes, width, null=config.null_class)
            if config.classes and not place
            else None
        )
        self.column = nn.ModuleList(
            GatedBlock(config, width, self.grid if place else None) for _ in range(2 * half + 1)
        )
        self.merge = nn.ModuleList(Linear(2 * width, width) for _ in range(half))
        self.norm = TimeLayerNorm(width)
        doubled = config.learned_variance and place == last
        self.head = nn.Conv2d(width, config.channels * (2 if doubled else 1), 3, padding=1)

    def enter(self, x: Tensor, label: Tensor | None) -> Tensor:
        """(B, C, H, W) image to tokens, with the class as one more token in front."""
        tokens: Tensor = self.position(self.patch(patchify(x, self.stride)))
        if self.label is None:
            return tokens
        return torch.cat([self.label(label, x.shape[0])[:, None], tokens], dim=1)

    def mix(
        self, tokens: Tensor, tau: Tensor, keys: Tensor | None, *, checkpointed: bool
    ) -> list[Tensor]:
        """What enters the blocks, and the output of each, without the class token.

        Of the finest branch only the last one, since nobody reads the others.
        """
        outputs, half = [tokens], len(self.merge)
        skips: list[Tensor] = []
        for place, block in enumerate(self.column):
            if place > half:
                joined = torch.cat([tokens, skips.pop()], dim=-1)
                tokens = self.merge[place - half - 1](joined)
            tokens = run(block, tokens, tau, keys, checkpointed=checkpointed)
            if place < half:
                skips.append(tokens)
            outputs = [tokens] if self.finest else [*outputs, tokens]
        return outputs if self.label is None else [each[:, 1:] for each in outputs]

    def predict(self, tokens: Tensor, tau: Tensor) -> Tensor:
        """(B, N, width) last tokens to the prediction on this grid."""
        prediction: Tensor = self.head(to_map(self.norm(tokens, tau), self.grid))
        return prediction


class DiMR(nn.Module):
    """F(x, time, label): branches from coarse to fine; the last one's prediction counts."""

    def __init__(self, config: DiMRConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.branches = nn.ModuleList(Branch(config, k) for k in range(len(config.widths)))
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
        return self._predictions(x, time, label, keys, coarse=False)[-1]

    def pyramid(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        image: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> list[Tensor]:
        """The predictions of all branches, coarse to fine, for training; the last is `forward`'s.

        Those of n branches are (B, C, H / 2^(n-1), W / 2^(n-1)), ..., (B, C, H, W); see
        `diffit.diffusion.loss.coarser` for what the coarse ones learn.
        """
        x = join_inputs(self.config, x, image, augment)
        return self._predictions(x, time, label, keys, coarse=True)

    def blocks(self) -> Iterable[nn.Module]:
        """The blocks of all branches and the upsamplers between, in the order they act in."""
        for branch in self._branches():
            if branch.upsample is not None:
                yield branch.upsample
            yield from branch.column

    def _predictions(
        self, x: Tensor, time: Tensor, label: Tensor | None, keys: Tensor | None, *, coarse: bool
    ) -> list[Tensor]:
        if not self.config.classes:
            check_unlabelled(label)
        tau = time_rows(time, scale=self.config.tau_scale, shift=self.config.tau_shift)
        checkpointed = self.activation_checkpointing
        outputs: list[Tensor] = []
        predictions = []
        for branch in self._branches():
            tokens = branch.enter(x, label)
            if branch.upsample is not None:
                above = torch.cat(outputs, dim=-1)
                tokens = tokens + run(branch.upsample, above, tau, checkpointed=checkpointed)
            outputs = branch.mix(tokens, tau, keys, checkpointed=checkpointed)
            if coarse or branch.finest:
                predictions.append(branch.predict(outputs[-1], tau))
        return predictions

    def _branches(self) -> list[Branch]:
        return cast(list[Branch], list(self.branches))

    def _initialise(self) -> None:
        """Linear layers and tables as published; convolutions, patches too, keep PyTorch's own."""
        for branch in self._branches():
            for layer in branch.modules():
                if isinstance(layer, nn.Linear) and layer is not branch.patch:
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
                elif isinstance(layer, nn.Embedding):
                    nn.init.trunc_normal_(layer.weight, std=0.02)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, C) tokens to a (B, C, h, w) view, in memory channels last."""
    return tokens.view(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)


def to_tokens(features: Tensor) -> Tensor:
    """The inverse of `to_map`; copies nothing of what lies in memory channels last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def _features(config: DiMRConfig, place: int) -> int:
    """Channels that a branch hands on: its first tokens and the output of each block."""
    return config.widths[place] * (2 * (config.depths[place] // 2) + 2)
