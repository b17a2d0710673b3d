"""Grad-CAM (arXiv:1610.02391) on the attention of the last layer, as in arXiv:2012.09838."""

import torch
from torch import Tensor

from diffit.explain.attribution.attention import class_row
from diffit.explain.attribution.slopes import attention_slopes
from diffit.explain.classifier import Classifier, need_attention


def gradcam(
    classifier: Classifier, images: Tensor, labels: Tensor, *, create_graph: bool = False
) -> Tensor:
    """Positive part of the heads' attention, each weighted by its mean gradient.

    With a_h the class token's attention to the image tokens in the last layer, and g_h the gradient
    of the class score by it: (E_h mean(g_h) a_h)^+.

    Args:
        classifier: shows its attention.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        create_graph: the map may be differentiated by the images.

    Returns:
        (B, n), not negative; all 0 where every head speaks against the class.
    """
    classifier = need_attention(classifier)
    trace, slopes = attention_slopes(classifier, images, labels, create_graph=create_graph)
    with torch.set_grad_enabled(create_graph):
        rows = class_row(trace.attentions[-1], classifier.prefix)
        weights = class_row(slopes[-1], classifier.prefix).mean(-1, keepdim=True)
        return (weights * rows).mean(1).clamp(min=0)
