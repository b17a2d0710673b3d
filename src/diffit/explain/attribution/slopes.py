"""Gradients of a class score, of a batch at once: no image's score depends on another image."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffit.errors import UsageError
from diffit.explain.classifier import Attentive, Classifier, Trace, describe


def class_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K) logits and (B,) labels to the (B,) logits of these labels."""
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; give int64 ({len(logits)},), one "
            "class for each image"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(f"labels must lie in 0 .. {logits.shape[1] - 1}, the classes there are")
    return logits.gather(1, labels[:, None])[:, 0]


def watched(images: Tensor, *, create_graph: bool) -> Tensor:
    """The images as the start of a graph, or of a longer one that leads through them."""
    return images if create_graph and images.requires_grad else images.detach().requires_grad_()


def image_slopes(
    classifier: Classifier, images: Tensor, labels: Tensor, *, create_graph: bool
) -> Tensor:
    """Gradient of each image's class score by its pixels, of the shape of the images."""
    # Of the kernels of attention only the plain one can be differentiated twice.
    kernels: Any = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
    with torch.enable_grad(), kernels:
        images = watched(images, create_graph=create_graph)
        scores = class_scores(classifier(images), labels)
        (slope,) = _gradients(scores, [images], classifier, create_graph=create_graph)
    return slope


def attention_slopes(
    classifier: Attentive, images: Tensor, labels: Tensor, *, create_graph: bool
) -> tuple[Trace, tuple[Tensor, ...]]:
    """The trace of a forward pass, and the gradient of each image's class score by the attention.

    Returns:
        The trace, and one (B, heads, S, S) gradient for each layer.
    """
    trace, slopes = slopes_of(
        classifier.traced, images, labels, classifier=classifier, create_graph=create_graph
    )
    return trace, slopes


def slopes_of(
    trace: Callable[[Tensor], Any],
    images: Tensor,
    labels: Tensor,
    *,
    classifier: Classifier,
    create_graph: bool,
) -> tuple[Any, tuple[Tensor, ...]]:
    """`attention_slopes` for any record of a pass that has ``logits`` and ``attentions``."""
    with torch.enable_grad():
        record = trace(watched(images, create_graph=create_graph))
        scores = class_scores(record.logits, labels)
        slopes = _gradients(scores, record.attentions, classifier, create_graph=create_graph)
    return record, slopes


def _gradients(
    scores: Tensor, inputs: Sequence[Tensor], classifier: Classifier, *, create_graph: bool
) -> tuple[Tensor, ...]:
    if not scores.requires_grad:
        raise UsageError(
            f"{describe(classifier)} lets no gradient through, so that this method cannot explain "
            "it; compute its logits with gradients, outside torch.no_grad"
        )
    return torch.autograd.grad(scores.sum(), inputs, create_graph=create_graph)
