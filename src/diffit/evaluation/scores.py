"""The Inception Score of a stream of logits (arXiv:1606.03498, section 4)."""

import torch
from torch import Tensor

SPLITS = 10
"""Parts of the images, in order, each with a score of its own; ADM's parts of 5,000 at 50,000."""


class Scores:
    """Sums that the score of each part follows from; memory does not grow with the images.

    Args:
        count: images that will come; part s holds those from s count // 10 on.
        classes: logits of an image.
    """

    def __init__(self, count: int, classes: int) -> None:
        self._starts = torch.tensor([s * count // SPLITS for s in range(1, SPLITS)])
        self._images = torch.zeros(SPLITS, dtype=torch.float64)
        self._negative_entropy = torch.zeros(SPLITS, dtype=torch.float64)
        self._marginal = torch.zeros(SPLITS, classes, dtype=torch.float64)

    def update(self, first: int, logits: Tensor) -> None:
        """Add (B, K) logits of the images ``first``, ``first`` + 1, ..."""
        log_p = logits.cpu().double().log_softmax(1)
        p = log_p.exp()
        part = torch.bucketize(torch.arange(first, first + len(p)), self._starts, right=True)
        self._images.index_add_(0, part, torch.ones(len(p), dtype=torch.float64))
        self._negative_entropy.index_add_(0, part, (p * log_p).sum(1))
        self._marginal.index_add_(0, part, p)

    def values(self) -> Tensor:
        """(10,) exp of the mean of KL(p(y|x) | p(y)) over each part."""
        if (self._images == 0).any():
            raise ValueError(f"the Inception Score needs {SPLITS} images, one in each part")
        p = self._marginal / self._images[:, None]
        # 0 log 0 is 0: a class that no image of a part shows adds nothing.
        entropy = -torch.special.xlogy(p, p).sum(1)
        scores: Tensor = (self._negative_entropy / self._images + entropy).exp()
        return scores
