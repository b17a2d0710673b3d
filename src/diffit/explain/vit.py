"""A vision transformer that classifies (arXiv:2010.11929, arXiv:2012.12877) and shows how.

Two paths compute the same: the plain one by fused attention, and one that hands out all that the
layers worked on, from which attention maps, their gradients and relevance follow. The names of the
weights are those of timm.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffit.config import Settings
from diffit.explain.classifier import Trace, check_normalisation, fit, normalise
from diffit.nn.attention import check_heads, join_heads, split_heads
from diffit.nn.dropout import Dropout, number_dropouts
from diffit.nn.linear import Linear

Distillation = Literal["none", "token", "head"]
"""DeiT's second token: `token` has it, `head` averages the logits of a head of its own as well."""


class ViTConfig(Settings):
    """Shape of a vision transformer, what it was trained on, and how images are handed to it."""

    size: int = Field(default=32, gt=0, le=4096)
    """Height and width that it looks at."""
    channels: int = Field(default=3, gt=0, le=64)
    patch: int = Field(default=4, gt=0, le=4096)
    """Side of a patch in pixels."""
    width: int = Field(default=192, gt=0, le=1 << 14)
    depth: int = Field(default=6, gt=0, le=256)
    heads: int = Field(default=3, gt=0, le=1 << 10)
    mlp_ratio: float = Field(default=4.0, gt=0, le=64)
    """Hidden units of the MLP for each channel of a token."""
    class_names: tuple[str, ...] = Field(default=(), max_length=1 << 20)
    classes: int = Field(default=0, ge=0, le=1 << 20)
    """Number of classes; by default that of the class names, which are else 0, 1, 2, ..."""
    mean: tuple[float, ...] = (0.5,)
    """What images in [0, 1] are normalised by, one number or one a channel; with 0.5 and 0.5 the
    network sees them in [-1, 1]."""
    std: tuple[float, ...] = (0.5,)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropout on what each branch adds; in training alone."""
    distillation: Distillation = "none"
    norm_eps: float = Field(default=1e-6, gt=0, le=1)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""
        return self.size // self.patch, self.size // self.patch

    @property
    def prefix(self) -> int:
        """Tokens before the image tokens."""
        return 1 if self.distillation == "none" else 2

    @property
    def hidden(self) -> int:
        """Hidden units of an MLP."""
        return round(self.width * self.mlp_ratio)

    @model_validator(mode="before")
    @classmethod
    def complete_classes(cls, data: object) -> object:
        """The number of classes from their names, or names from the number."""
        if isinstance(data, dict):
            names, number = data.get("class_names") or (), data.get("classes") or 0
            if names and not number:
                return {**data, "classes": len(names)}
            if not names and isinstance(number, int) and 0 < number <= 1 << 20:
                return {**data, "class_names": tuple(str(n) for n in range(number))}
        return data

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} is no multiple of patch {self.patch}")
        if not self.classes or len(self.class_names) != self.classes:
            raise ValueError(
                f"there are {len(self.class_names)} class_names for {self.classes} classes; name "
                "each class once, or give the number alone"
            )
        check_heads(self.width, self.heads)
        check_normalisation(self.mean, self.std, channels=self.channels)
        return self


class BlockTape(NamedTuple):
    """What a block worked on: (B, S, C) tokens unless said otherwise, in order of computation."""

    tokens: Tensor
    """Its input."""
    normed: Tensor
    """Input of the linear layer for queries, keys and values."""
    query: Tensor
    """(B, heads, S, d), as are keys and values; not scaled."""
    key: Tensor
    value: Tensor
    attention: Tensor
    """(B, heads, S, S) weights."""
    mixed: Tensor
    """Input of the linear layer after attention."""
    attended: Tensor
    """What the first branch adds."""
    middle: Tensor
    """tokens + attended."""
    middle_normed: Tensor
    """Input of the MLP."""
    hidden: Tensor
    """(B, S, hidden) after GELU."""
    moved: Tensor
    """What the second branch adds: the block's output is middle + moved."""


class Tape(NamedTuple):
    """What a `ViT` worked on in one forward pass, from the pixels to the logits."""

    pixels: Tensor
    """(B, C, H, W), resized and normalised."""
    patches: Tensor
    """(B, S, C) embedded patches after the prefix tokens, before positions are added."""
    blocks: tuple[BlockTape, ...]
    normed: Tensor
    """(B, S, C) after the last norm."""
    logits: Tensor
    """(B, K)."""

    @property
    def attentions(self) -> tuple[Tensor, ...]:
        """(B, heads, S, S) of each layer."""
        return tuple(block.attention for block in self.blocks)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, C) to the same, by fused attention."""
        q, k, v = split_heads(self.qkv(tokens), self.heads)
        mixed: Tensor = self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))
        return mixed


class MLP(nn.Module):
    """Linear, GELU by the error function, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, C) to the same."""
        moved: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return moved


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.hidden)
        self.drop1 = Dropout(config.dropout)
        self.drop2 = Dropout(config.dropout)

    def forward(self, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, S, C) and dropout keys to (B, S, C)."""
        tokens = tokens + self.drop1(self.attn(self.norm1(tokens)), keys)
        moved: Tensor = self.drop2(self.mlp(self.norm2(tokens)), keys)
        return tokens + moved

    def record(self, tokens: Tensor) -> BlockTape:
        """`forward` without dropout, step by step."""
        normed = self.norm1(tokens)
        query, key, value = split_heads(self.attn.qkv(normed), self.attn.heads)
        attention = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1)
        mixed = join_heads(attention @ value)
        attended = self.attn.proj(mixed)
        middle = tokens + attended
        middle_normed = self.norm2(middle)
        hidden = F.gelu(self.mlp.fc1(middle_normed))
        moved = self.mlp.fc2(hidden)
        return BlockTape(
            tokens, normed, query, key, value, attention, mixed, attended, middle, middle_normed,
            hidden, moved,
        )  # fmt: skip


class PatchEmbed(nn.Module):
    """Patches as tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) to (B, n, width), row-major."""
        tokens: Tensor = self.proj(pixels)
        return tokens.flatten(2).mT


class ViT(nn.Module):
    """A pre-norm vision transformer with a class token and learned positions.

    A `Classifier` that shows its attention. Its fresh weights follow from torch's global generator:
    see `build_vit`.
    """

    name = "the ViT"

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        tokens = config.prefix + config.grid[0] * config.grid[1]
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.distillation != "none":
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.head = nn.Linear(width, config.classes)
        if config.distillation == "head":
            self.head_dist = nn.Linear(width, config.classes)
        number_dropouts(self)
        self.apply(_start)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) that it looks at."""
        return self.config.channels, self.config.size, self.config.size

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.config.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names."""
        return self.config.class_names

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""
        return self.config.grid

    @property
    def prefix(self) -> int:
        """Tokens before the image tokens."""
        return self.config.prefix

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            images: (B, C, any H, any W) in [-1, 1].
            keys: (B,) int64, one for each image, from which its dropout follows; None for none.

        Returns:
            (B, K) logits.
        """
        tokens = self.patches(self.pixels(images)) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, keys)
        return self.read(self.norm(tokens[:, : self.prefix]))

    def record(self, images: Tensor) -> Tape:
        """`forward` without dropout, with all that the layers worked on; (B, C, H, W) images."""
        pixels = self.pixels(images)
        patches = self.patches(pixels)
        tokens = patches + self.pos_embed
        tapes = []
        for block in cast(Iterable[Block], self.blocks):
            tapes.append(block.record(tokens))
            tokens = tapes[-1].middle + tapes[-1].moved
        normed = self.norm(tokens)
        return Tape(pixels, patches, tuple(tapes), normed, self.read(normed))

    def traced(self, images: Tensor) -> Trace:
        """(B, C, H, W) images to logits and the attention of every layer."""
        tape = self.record(images)
        return Trace(tape.logits, tape.attentions)

    def pixels(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as the first layer sees them."""
        images = fit(images.to(self.pos_embed.dtype), self.shape)
        return normalise(images, self.config.mean, self.config.std)

    def patches(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) pixels to (B, S, width): prefix tokens, then patches."""
        first: list[Tensor] = [self.cls_token]
        if self.config.distillation != "none":
            first.append(self.dist_token)
        prefix = torch.cat(first, 1).expand(len(pixels), -1, -1)
        return torch.cat([prefix, self.patch_embed(pixels)], 1)

    def read(self, normed: Tensor) -> Tensor:
        """(B, at least the prefix tokens, width) to (B, K) logits."""
        logits: Tensor = self.head(normed[:, 0])
        if self.config.distillation == "head":
            logits = (logits + self.head_dist(normed[:, 1])) / 2
        return logits


def build_vit(config: ViTConfig, *, seed: int = 0) -> ViT:
    """A ViT with fresh weights that depend on ``seed`` alone, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % (1 << 64))  # all that PyTorch takes
        return ViT(config)


def empty_vit(config: ViTConfig) -> ViT:
    """A ViT whose weights take no memory yet: `load_state_dict(..., assign=True)` gives it some."""
    with torch.device("meta"):
        return ViT(config)


def _start(module: nn.Module) -> None:
    """timm's start: narrow normal weights, no biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
