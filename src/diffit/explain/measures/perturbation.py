"""Do the marked pixels matter? Accuracy as the most, or the least, relevant of them are blanked.

The perturbation tests of Chefer et al. (arXiv:2012.09838, section 4). In the positive test the most
relevant pixels go first and a good explanation lets accuracy fall fast (a low area is good); in the
negative test the least relevant go first (a high area is good).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffit.errors import DataError

Order = Literal["positive", "negative"]
"""What goes first: the most relevant pixels, or the least relevant."""

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the pixels that are blanked, as published."""
BLACK = -1.0
"""0 for pixels in [0, 1]: what blanked pixels become."""


class Perturbation(NamedTuple):
    """One value per image and fraction; areas are under the mean curve.

    Attributes:
        fractions: shares of the pixels that were blanked.
        correct: (B, F) 1 where the label is still the largest logit.
        probability: (B, F) of the label.
    """

    fractions: tuple[float, ...]
    correct: Tensor
    probability: Tensor

    @property
    def accuracy(self) -> Tensor:
        """(F,) share of the images that are still classified as their label."""
        return self.correct.mean(0)

    @property
    def auc(self) -> float:
        """Area under `accuracy`, in [0, 1]."""
        return area(self.accuracy, self.fractions)

    @property
    def probability_auc(self) -> float:
        """Area under the mean probability of the label, in [0, 1]."""
        return area(self.probability.mean(0), self.fractions)


@torch.no_grad()
def perturbation_test(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    relevance: Tensor,
    labels: Tensor,
    *,
    order: Order,
    fractions: Sequence[float] = FRACTIONS,
    fill: float = BLACK,
) -> Perturbation:
    """Blank growing shares of the pixels, in the order of their relevance, and classify again.

    What was attacked is the caller's choice: the published numbers explain the attacked image and
    blank pixels of the clean one, or of the attacked one; pass the one as ``relevance`` and the
    other as ``images``.

    Args:
        classify: images in [-1, 1] to (B, K) logits.
        images: (B, C, H, W) whose pixels are blanked, in all channels.
        relevance: (B, H, W); among equal values the pixel that comes first goes first.
        labels: (B,) the class that is watched: the true one, or the model's own prediction.
        order: `positive` or `negative`.
        fractions: rising shares in (0, 1); a share of n pixels means the floor of it.
        fill: what blanked pixels become.
    """
    _check(images, relevance, labels, fractions, order)
    ranks = removal_ranks(relevance, order)
    correct, probability = [], []
    for fraction in fractions:
        # 0.3 of 10 pixels are 3, although 0.3 * 10 may fall a hair short of it.
        count = int(fraction * ranks[0].numel() + 1e-9)
        gone = (ranks < count).reshape(len(images), 1, *images.shape[2:])
        logits = classify(images.masked_fill(gone, fill)).double()
        correct.append((logits.argmax(1) == labels).double())
        probability.append(logits.softmax(1).gather(1, labels[:, None])[:, 0])
    return Perturbation(
        tuple(fractions), torch.stack(correct, 1).cpu(), torch.stack(probability, 1).cpu()
    )


def removal_ranks(relevance: Tensor, order: Order) -> Tensor:
    """(B, H, W) relevance to (B, H W) places in the order of removal, 0 first."""
    flat = relevance.flatten(1)
    places = flat.argsort(dim=1, descending=order == "positive", stable=True)
    steps = torch.arange(flat.shape[1], device=flat.device).expand_as(places)
    return torch.empty_like(places).scatter_(1, places, steps)


def area(curve: Tensor, fractions: Sequence[float]) -> float:
    """Trapezoidal area under a curve, divided by the width of its range: a mean height."""
    at = torch.tensor(fractions, dtype=torch.float64)
    return float(torch.trapezoid(curve.double(), at) / (at[-1] - at[0]))


def _check(
    images: Tensor, relevance: Tensor, labels: Tensor, fractions: Sequence[float], order: str
) -> None:
    if order not in ("positive", "negative"):
        raise DataError(f"there is no order {order!r}; choose positive or negative")
    expected = (len(images), *images.shape[2:])
    if tuple(relevance.shape) != expected or len(labels) != len(images):
        raise DataError(
            f"relevance is {tuple(relevance.shape)} with {len(labels)} labels, images are "
            f"{tuple(images.shape)}; each needs one label and one value per pixel: enlarge maps "
            "of tokens first"
        )
    if not bool(relevance.isfinite().all()):
        raise DataError("a relevance map holds values that are not finite; it orders no pixels")
    rising = all(a < b for a, b in pairwise(fractions))
    if len(fractions) < 2 or not rising or not 0 < fractions[0] < fractions[-1] < 1:
        raise DataError(f"fractions {list(fractions)} must be two or more, rising, between 0 and 1")
