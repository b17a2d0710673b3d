"""The Inception Score against its formula."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from diffit.evaluation.scores import SPLITS, Scores


def formula(logits: np.ndarray) -> np.ndarray:
    """exp E KL(p(y|x) | p(y)) of ten equal parts, as ADM's evaluation splits them."""
    p = softmax(logits.astype(np.float64), axis=1)
    parts = np.split(p, SPLITS)
    return np.array([np.exp(rel_entr(part, part.mean(0)).sum(1).mean()) for part in parts])


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_a_stream_gives_the_scores_of_the_formula(batch):
    logits = 3 * torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    scores = Scores(200, 30)
    for first in range(0, 200, batch):
        scores.update(first, logits[first : first + batch])
    np.testing.assert_allclose(scores.values(), formula(logits.numpy()), rtol=1e-12)


def test_sure_and_varied_images_score_the_number_of_classes_and_equal_ones_score_one():
    for order, expected in ((torch.arange(100) % 10, 10), (torch.zeros(100).long(), 1)):
        scores = Scores(100, 10)
        scores.update(0, 1e3 * torch.nn.functional.one_hot(order, 10).float())
        torch.testing.assert_close(scores.values(), torch.full((10,), float(expected)).double())


def test_an_empty_part_is_refused():
    scores = Scores(100, 10)
    scores.update(0, torch.zeros(50, 10))
    with pytest.raises(ValueError, match="needs 10 images"):
        scores.values()
