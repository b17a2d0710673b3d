"""Methods by layer-wise relevance propagation through a `ViT` (arXiv:2012.09838).

Relevance walks back over the tape of a forward pass: `from_logits`, then for each block, from the
last, `to_attention` and `below_attention`, then `to_pixels`.
"""

from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor

from diffit.errors import UsageError
from diffit.explain.attribution.attention import (
    add_identity,
    check_start,
    class_row,
    class_row_of_product,
)
from diffit.explain.attribution.lrp_rules import BALANCED, PLAIN, Rules, branch, pixels, product
from diffit.explain.attribution.slopes import class_scores, slopes_of
from diffit.explain.classifier import Classifier, describe
from diffit.explain.vit import Block, BlockTape, Tape, ViT
from diffit.nn.attention import join_heads


def need_vit(classifier: Classifier) -> ViT:
    """The classifier itself; UsageError if it is not a `ViT`, whose layers have rules."""
    if not isinstance(classifier, ViT):
        raise UsageError(
            f"{describe(classifier)} has layers without relevance rules; LRP and transformer "
            "attribution explain the ViTs of `diffit explain train-classifier` and ViT and DeiT of "
            "transformers; generic-relevance needs only attention"
        )
    return classifier


def full_precision(images: Tensor) -> torch.autocast:
    """No autocast: relevance divides by sums that nearly cancel, which takes more than 8 bits."""
    return torch.autocast(images.device.type, enabled=False)


def partial_lrp(
    classifier: Classifier, images: Tensor, labels: Tensor, *, create_graph: bool = False
) -> Tensor:
    """E_h (R)^+ of the class token's row in the last attention, by plain rules.

    Args:
        classifier: a `ViT`.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, n), not negative.
    """
    vit = need_vit(classifier)
    with torch.set_grad_enabled(create_graph), full_precision(images):
        tape, last = vit.record(images), vit.config.depth - 1
        (maps,) = attention_relevance(vit, tape, labels, PLAIN, start=last)
        return class_row(maps.clamp(min=0).mean(1), vit.prefix)


def full_lrp(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    rules: Rules = PLAIN,
    create_graph: bool = False,
) -> Tensor:
    """Relevance propagated down to the pixels, summed over the channels.

    Args:
        classifier: a `ViT`.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        rules: `PLAIN`, or `BALANCED`, those of transformer attribution.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, h, w) at the size that the classifier looks at; signed.
    """
    vit = need_vit(classifier)
    with torch.set_grad_enabled(create_graph), full_precision(images):
        tape = vit.record(images)
        relevance = from_logits(vit, tape, labels, rules)
        for block, taped in reversed(_pairs(vit, tape)):
            half = to_attention(block, taped, relevance, rules)
            relevance = below_attention(block, taped, half, rules)
        return to_pixels(vit, tape, relevance, rules).sum(1)


def lrp_rollout(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: int = 0,
    rules: Rules = BALANCED,
    create_graph: bool = False,
) -> Tensor:
    """Class token's row of the product of I + E_h (R)^+ over the layers: LRP without gradients.

    Args:
        classifier: a `ViT`.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        start: first layer of the product.
        rules: `BALANCED`, those of transformer attribution, or `PLAIN`.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, n), not negative.
    """
    vit = need_vit(classifier)
    start = check_start(start, vit.config.depth)
    with torch.set_grad_enabled(create_graph), full_precision(images):
        found = attention_relevance(vit, vit.record(images), labels, rules, start=start)
        layers = [maps.clamp(min=0).mean(1) for maps in found]
        return class_row_of_product(add_identity(layers), vit.prefix)


def transformer_attribution(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: int = 1,
    create_graph: bool = False,
) -> Tensor:
    """Class token's row of the product of I + E_h (grad A * R)^+ (arXiv:2012.09838, Eq. 13-14).

    R is the relevance of the attention by the balanced rules; the product's rows are not scaled.

    Args:
        classifier: a `ViT`.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        start: first layer of the product; the paper's evaluation leaves the first out.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, n), not negative.
    """
    vit = need_vit(classifier)
    start = check_start(start, vit.config.depth)
    with torch.set_grad_enabled(create_graph), full_precision(images):
        tape, slopes = slopes_of(
            vit.record, images, labels, classifier=vit, create_graph=create_graph
        )
        found = attention_relevance(vit, tape, labels, BALANCED, start=start)
        pairs = zip(found, slopes[start:], strict=True)
        layers = [(maps * slope).clamp(min=0).mean(1) for maps, slope in pairs]
        return class_row_of_product(add_identity(layers), vit.prefix)


def attention_relevance(
    vit: ViT, tape: Tape, labels: Tensor, rules: Rules, *, start: int = 0
) -> list[Tensor]:
    """(B, heads, S, S) relevance of the attention of each layer from ``start`` to the last."""
    pairs = _pairs(vit, tape)[start:]
    relevance = from_logits(vit, tape, labels, rules)
    found: list[Tensor] = []
    for block, taped in reversed(pairs):
        half = to_attention(block, taped, relevance, rules)
        found.append(half.attention)
        if len(found) < len(pairs):
            relevance = below_attention(block, taped, half, rules)
    return found[::-1]


def from_logits(vit: ViT, tape: Tape, labels: Tensor, rules: Rules) -> Tensor:
    """(B, S, C) relevance of the last block's output, 1 in all for the logit of each label.

    Where a distillation token has its own head, each head takes its part of their mean.
    """
    class_scores(tape.logits, labels)  # refuses labels that do not fit
    start = torch.zeros_like(tape.logits).scatter(1, labels[:, None], 1)
    tokens = torch.zeros_like(tape.normed)
    if vit.config.distillation != "head":
        tokens[:, 0] = rules.linear(start, tape.normed[:, 0], vit.head.weight)
        return tokens
    logits = [head(tape.normed[:, i]) / 2 for i, head in enumerate((vit.head, vit.head_dist))]
    parts = rules.residual(start, *logits)
    for i, head in enumerate((vit.head, vit.head_dist)):
        tokens[:, i] = rules.linear(parts[i], tape.normed[:, i], head.weight)
    return tokens


class AtAttention(NamedTuple):
    """Relevance half-way down a block."""

    attention: Tensor
    """(B, heads, S, S), of the attention weights."""
    value: Tensor
    """(B, heads, S, d), of the values."""
    skip: Tensor
    """(B, S, C), that went past the attention."""


def to_attention(block: Block, tape: BlockTape, relevance: Tensor, rules: Rules) -> AtAttention:
    """From the output of a block, (B, S, C), to its attention."""
    skip, moved = rules.residual(relevance, tape.middle, tape.moved)
    hidden = rules.linear(moved, tape.hidden, block.mlp.fc2.weight)
    normed = rules.linear(hidden, tape.middle_normed, block.mlp.fc1.weight)
    middle = branch(tape.middle, skip, normed)
    skip, attended = rules.residual(middle, tape.tokens, tape.attended)
    mixed = rules.linear(attended, tape.mixed, block.attn.proj.weight)
    heads = rearrange(mixed, "b s (h d) -> b h s d", h=block.attn.heads)
    attention, value = product(heads, tape.attention, tape.value)
    return AtAttention(attention, value, skip)


def below_attention(block: Block, tape: BlockTape, at: AtAttention, rules: Rules) -> Tensor:
    """From the attention of a block to its input, (B, S, C)."""
    query, key = product(at.attention, tape.query, tape.key.mT)
    joined = torch.cat([join_heads(part) for part in (query, key.mT, at.value)], -1)
    normed = rules.linear(joined, tape.normed, block.attn.qkv.weight)
    return branch(tape.tokens, at.skip, normed)


def to_pixels(vit: ViT, tape: Tape, relevance: Tensor, rules: Rules) -> Tensor:
    """From the first block's input, (B, S, C), to (B, C, H, W) pixels, less what positions take."""
    positions = vit.pos_embed.expand_as(tape.patches)
    tokens, _ = rules.residual(relevance, tape.patches, positions)
    places = rearrange(tokens[:, vit.prefix :], "b (h w) c -> b c h w", h=vit.grid[0])
    return pixels(places, tape.pixels, vit.patch_embed.proj.weight)


def _pairs(vit: ViT, tape: Tape) -> list[tuple[Block, BlockTape]]:
    return list(zip(cast(list[Block], list(vit.blocks)), tape.blocks, strict=True))
