"""What all networks have in common: kinds of settings, checks of inputs, the initial weights."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from diffit.nn.blocks import AdaptiveBlock
from diffit.nn.embed import LabelEmbedding, TimeFeatures

Side = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=16384)]
Features = Annotated[int, Field(ge=2, le=4096)]
Depth = Annotated[int, Field(ge=1, le=256)]
Classes = Annotated[int, Field(ge=0, le=1_000_000)]
Condition = Annotated[int, Field(ge=0, le=16384)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=64)]


class Size(NamedTuple):
    """One row of the table of transformer sizes."""

    depth: int
    width: int
    heads: int


SIZES = {
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}
"""The sizes of DiT (arXiv:2212.09748, Table 1), which latent DiffiT shares; XL is the paper's."""


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a setting that may be one number."""
    return (size, size) if isinstance(size, int) else size


def check_tokens(size: tuple[int, int], patch: int, width: int, heads: int) -> None:
    """ValueError unless patches tile the image and the heads divide the width."""
    height, across = size
    if height % patch or across % patch:
        raise ValueError(f"size {height} x {across} is no multiple of patch {patch}")
    if width % heads:
        raise ValueError(f"width {width} is no multiple of heads {heads}")


def check_column(size: tuple[int, int], patch: int, width: int, heads: int) -> None:
    """`check_tokens`, and ValueError unless the width suits the fixed position table."""
    check_tokens(size, patch, width, heads)
    if width % 4:
        raise ValueError(f"width {width} is no multiple of 4, as the position table needs")


def check_hidden(widths: Sequence[int], ratio: float) -> None:
    """ValueError unless every MLP has a hidden unit."""
    if round(min(widths) * ratio) < 1:
        raise ValueError(f"mlp_ratio {ratio:g} leaves width {min(widths)} no hidden unit; raise it")


def check_features(features: int, kind: TimeFeatures) -> None:
    """ValueError for an odd number of sines and cosines."""
    if features % 2 and kind != "dit":
        raise ValueError(f"time_features {features} is odd; time_embedding {kind} needs pairs")


def check_modulation(time_into: str, normed: bool) -> None:
    """ValueError for a norm after a modulation that there is not."""
    if normed and time_into != "norm":
        raise ValueError(f"modulation_norm needs time_into 'norm', not {time_into!r}")


def join_inputs(
    config: Any, x: Tensor, image: Tensor | None, augment: Tensor | None = None
) -> Tensor:
    """What a network's first layer sees: x, and behind its channels those of the condition image.

    ValueError unless both fit the network of ``config``, which takes no augmentation label.
    """
    if tuple(x.shape[1:]) != config.shape:
        raise ValueError(
            f"image is {_across(x.shape[1:])}; this network was built for {_across(config.shape)}"
        )
    if augment is not None:
        raise ValueError("this network takes no augmentation label; set `augment: true`")
    if not config.condition_channels:
        if image is not None:
            raise ValueError("this network takes no condition image; set `condition_channels`")
        return x
    wanted = (x.shape[0], config.condition_channels, *config.shape[1:])
    if image is None:
        raise ValueError(f"this network needs a condition image of {_across(wanted[1:])}")
    if tuple(image.shape) != wanted:
        raise ValueError(
            f"{image.shape[0]} condition images are {_across(image.shape[1:])}; this network takes "
            f"{_across(wanted[1:])}, one for each of {x.shape[0]} images"
        )
    return torch.cat([x, image], dim=1)


def _across(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def check_unlabelled(label: Tensor | None) -> None:
    """ValueError for a label, other than "no class", to a network without classes."""
    if label is not None and bool((label != 0).any()):
        raise ValueError("this network has no classes; give no label")


def label_vector(
    embedding: LabelEmbedding | None, label: Tensor | None, batch: int
) -> Tensor | None:
    """(B, T) rows of the labels; None, and a check that there is no label, without classes."""
    if embedding is None:
        check_unlabelled(label)
        return None
    vector: Tensor = embedding(label, batch)
    return vector


def xavier_uniform(network: nn.Module) -> None:
    """Xavier-uniform weights of all linear and convolutional layers, biases 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero(layer: Any) -> None:
    """Weight and bias 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def close_gates(network: nn.Module) -> None:
    """Let every adaptive block start as the identity: the "Zero" of adaLN-Zero."""
    for block in network.modules():
        if isinstance(block, AdaptiveBlock):
            zero(block.modulation)
