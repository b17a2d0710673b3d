"""Explanations of a classifier's decision: which parts of an image it came from.

maps = token_maps("transformer-attribution", classifier, images, labels)    # (B, n)
picture = upsample(to_grid(maps, classifier.grid), (224, 224))              # (B, 224, 224)
"""

import torch
from torch import Tensor

from diffit.config import nearest
from diffit.errors import DataError, UsageError
from diffit.explain.attribution.attention import raw_attention, rollout
from diffit.explain.attribution.generic import attribution_rollout, generic_relevance
from diffit.explain.attribution.gradcam import gradcam
from diffit.explain.attribution.gradients import gradient_input, integrated_gradients, smoothgrad
from diffit.explain.attribution.maps import cell_sums, display, positive_share, to_grid, upsample
from diffit.explain.attribution.method import Method
from diffit.explain.attribution.relevance import (
    full_lrp,
    lrp_rollout,
    partial_lrp,
    transformer_attribution,
)
from diffit.explain.classifier import Classifier, describe, is_attentive

__all__ = [
    "METHODS",
    "Method",
    "cell_sums",
    "display",
    "get_method",
    "positive_share",
    "to_grid",
    "token_maps",
    "upsample",
]

METHODS: dict[str, Method] = {
    "raw-attention": Method(
        raw_attention, "Raw attention", needs=("attention",), by_class=False,
        reference="arXiv:2010.11929",
    ),
    "rollout": Method(
        rollout, "Attention rollout", needs=("attention",), by_class=False,
        reference="arXiv:2005.00928",
    ),
    "gradcam": Method(
        gradcam, "Grad-CAM on attention", needs=("attention", "gradient"),
        reference="arXiv:1610.02391",
    ),
    "partial-lrp": Method(
        partial_lrp, "Partial LRP", needs=("attention", "LRP"), reference="arXiv:1905.09418"
    ),
    "full-lrp": Method(
        full_lrp, "Full LRP", needs=("attention", "LRP"), gives="pixels", signed=True,
        reference="arXiv:1512.02479",
    ),
    "lrp-rollout": Method(
        lrp_rollout, "LRP rollout", needs=("attention", "LRP"), reference="arXiv:2012.09838"
    ),
    "transformer-attribution": Method(
        transformer_attribution, "Transformer attribution", needs=("attention", "gradient", "LRP"),
        reference="arXiv:2012.09838",
    ),
    "attribution-rollout": Method(
        attribution_rollout, "Attribution rollout", needs=("attention", "gradient"),
        reference="arXiv:2004.11207, arXiv:2509.14846",
    ),
    "generic-relevance": Method(
        generic_relevance, "Generic relevance", needs=("attention", "gradient"),
        reference="arXiv:2103.15679",
    ),
    "gradient-input": Method(
        gradient_input, "Gradient x input", needs=("gradient",), gives="pixels", signed=True,
        reference="arXiv:1605.01713",
    ),
    "integrated-gradients": Method(
        integrated_gradients, "Integrated gradients", needs=("gradient",), gives="pixels",
        signed=True, reference="arXiv:1703.01365",
    ),
    "smoothgrad": Method(
        smoothgrad, "SmoothGrad", needs=("gradient",), gives="pixels", reference="arXiv:1706.03825"
    ),
}  # fmt: skip


def get_method(name: str) -> Method:
    """The method of that name; UsageError with the nearest name if there is none."""
    if name not in METHODS:
        raise UsageError(f"there is no explanation method {name!r}; {nearest(name, list(METHODS))}")
    return METHODS[name]


def token_maps(
    name: str,
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    grid: tuple[int, int] | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Any method's explanation as one number that is not negative for each token.

    Pixels are summed over the cells of the grid. Of signed maps the positive part is kept, after
    the sum: what spoke for the class where it outweighs what spoke against it.

    Args:
        name: a key of `METHODS`.
        classifier: has what the method needs.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64, the class to explain.
        grid: (rows, columns) of the cells; by default those of the classifier's image tokens.
        create_graph: the maps may be differentiated by the images.

    Returns:
        (B, n), row-major.

    Raises:
        UsageError: no such method, or the classifier lacks what it needs.
        DataError: a map is not finite.
    """
    method = get_method(name)
    method.check(classifier)
    maps = method.run(classifier, images, labels, create_graph=create_graph)
    if method.gives == "pixels":
        maps = cell_sums(maps, _grid(classifier, grid))
    elif grid is not None and grid != _grid(classifier, None):
        raise ValueError(f"{name} gives one number for each token; its grid cannot be chosen")
    if not torch.isfinite(maps).all():
        raise DataError(
            f"{name} gave a map that is not finite; are all pixels finite? if so, explain in "
            "float64, or by another method"
        )
    return maps.clamp(min=0)


def _grid(classifier: Classifier, grid: tuple[int, int] | None) -> tuple[int, int]:
    if grid is not None:
        return grid
    if not is_attentive(classifier):
        raise UsageError(
            f"{describe(classifier)} has no image tokens; say with a grid into how many rows and "
            "columns pixels are summed"
        )
    return classifier.grid
