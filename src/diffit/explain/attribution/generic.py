"""Attention weighted by its gradients: generic relevance and attribution rollout.

Both need no rule of any layer but attention, and so work for every network that shows it.
"""

import torch
from torch import Tensor

from diffit.explain.attribution.attention import (
    add_identity,
    check_start,
    class_row_of_product,
    with_skip,
)
from diffit.explain.attribution.slopes import attention_slopes
from diffit.explain.classifier import Classifier, need_attention

RIEMANN = torch.linspace(0, 1, 20, dtype=torch.float64).mean().item()
"""Sum of 20 points on [0, 1] over their number, the factor of attribution rollout."""


def generic_relevance(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: int = 0,
    create_graph: bool = False,
) -> Tensor:
    """R <- R + E_h (grad A * A)^+ R, from R = I at layer ``start`` (arXiv:2103.15679, Eq. 5-6).

    Args:
        classifier: shows its attention.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        start: first layer.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, n), the class token's row of R; not negative.
    """
    classifier = need_attention(classifier)
    trace, slopes = attention_slopes(classifier, images, labels, create_graph=create_graph)
    with torch.set_grad_enabled(create_graph):
        pairs = zip(trace.attentions, slopes, strict=True)
        layers = [(maps * slope).clamp(min=0).mean(1) for maps, slope in pairs]
        layers = add_identity(layers[check_start(start, len(layers)) :])
        return class_row_of_product(layers, classifier.prefix)


def attribution_rollout(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: int = 0,
    create_graph: bool = False,
) -> Tensor:
    """Rollout of max_h (grad A * A * sum_k a_k / m)^+, as the reproduction arXiv:2509.14846 has it.

    The sum stands for the integral of attention attribution (arXiv:2004.11207), of which
    the gradient is taken once, at the attention itself: 20 points a_k on [0, 1] give a factor 1/2.
    The positive part is ours: the rows of a rollout are weights.

    Args:
        classifier: shows its attention.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        start: first layer of the product.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, n), not negative.
    """
    classifier = need_attention(classifier)
    trace, slopes = attention_slopes(classifier, images, labels, create_graph=create_graph)
    with torch.set_grad_enabled(create_graph):
        pairs = zip(trace.attentions, slopes, strict=True)
        layers = [(maps * slope * RIEMANN).amax(1).clamp(min=0) for maps, slope in pairs]
        layers = layers[check_start(start, len(layers)) :]
        return class_row_of_product(map(with_skip, layers), classifier.prefix)
