"""Maps from attention alone: that of the last layer, and rollout (arXiv:2005.00928).

Neither knows the class: a map tells where the network looked, not what spoke for a label.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from diffit.explain.classifier import Classifier, need_attention


def raw_attention(
    classifier: Classifier, images: Tensor, labels: Tensor, *, create_graph: bool = False
) -> Tensor:
    """E_h A[0]: what the class token of the last layer attends to, averaged over the heads.

    Args:
        classifier: shows its attention.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,); they change nothing here.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, n), not negative.
    """
    classifier = need_attention(classifier)
    with torch.set_grad_enabled(create_graph):
        last = classifier.traced(images).attentions[-1]
        return class_row(last.mean(1), classifier.prefix)


def rollout(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: int = 0,
    create_graph: bool = False,
) -> Tensor:
    """Row of the class token in the product of the layers' attention, skip paths included.

    A layer is E_h A + I with rows scaled to 1; the product is that of the layers from ``start`` to
    the last (arXiv:2005.00928, Eq. 1, whose weights of 1/2 the scaling gives).

    Args:
        classifier: shows its attention.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,); they change nothing here.
        start: first layer of the product; 0 for all.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, n), not negative.
    """
    classifier = need_attention(classifier)
    with torch.set_grad_enabled(create_graph):
        layers = [maps.mean(1) for maps in classifier.traced(images).attentions]
        layers = layers[check_start(start, len(layers)) :]
        return class_row_of_product(map(with_skip, layers), classifier.prefix)


def with_skip(layer: Tensor) -> Tensor:
    """(B, S, S) to layer + I, rows scaled to a sum of 1."""
    layer = layer + torch.eye(layer.shape[-1]).to(layer)
    return layer / layer.sum(-1, keepdim=True)


def class_row(matrix: Tensor, prefix: int) -> Tensor:
    """(..., S, S) to (..., n): from the class token to the image tokens.

    Without a class token the logits read all tokens alike: the mean of the rows.
    """
    row = matrix[..., 0, :] if prefix else matrix.mean(-2)
    return row[..., prefix:]


def class_row_of_product(layers: Iterable[Tensor], prefix: int) -> Tensor:
    """`class_row` of the matrix product last ... second first, of (B, S, S) layers.

    A row times a matrix is enough, layer by layer from the last: S times less work than the
    product itself.
    """
    row = None
    for layer in reversed(list(layers)):
        if row is None:
            row = layer[:, :1] if prefix else layer.mean(1, keepdim=True)
        else:
            row = row @ layer
    if row is None:
        raise ValueError("there are no layers to multiply")
    return row[:, 0, prefix:]


def check_start(start: int, depth: int) -> int:
    """The first layer of a product; the last one if there are not as many. ValueError below 0."""
    if start < 0:
        raise ValueError(f"start is {start}; layers count from 0")
    return min(start, depth - 1)


def add_identity(layers: Sequence[Tensor]) -> list[Tensor]:
    """I + layer for each of (B, S, S), rows not scaled."""
    return [layer + torch.eye(layer.shape[-1]).to(layer) for layer in layers]
