"""Streamed moments equal those in memory, in any order of arrival."""

import pytest
import torch

from diffit.evaluation.moments import Gaussian, Moments, merged


def features(count: int = 500, dims: int = 7, offset: float = 0.0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(count)
    mix = torch.randn(dims, dims, generator=draws, dtype=torch.float64)
    return torch.randn(count, dims, generator=draws, dtype=torch.float64) @ mix + offset


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_streaming_equals_in_memory(batch, offset):
    x = features(offset=offset)
    moments = Moments(7)
    for first in range(0, len(x), batch):
        moments.update(x[first : first + batch])
    found = moments.gaussian()
    torch.testing.assert_close(found.mean, x.mean(0), atol=0, rtol=1e-12)
    torch.testing.assert_close(found.covariance, x.T.cov(), atol=1e-10, rtol=1e-10)
    assert moments.count == 500


def test_merging_in_any_order_gives_the_same():
    x = features()
    parts = []
    for piece in x.split((3, 200, 1, 296)):
        parts.append(Moments(7))
        parts[-1].update(piece)
    parts.append(Moments(7))  # an empty part changes nothing
    for order in ([0, 1, 2, 3, 4], [4, 3, 1, 0, 2]):
        found = merged(parts[i] for i in order).gaussian()
        torch.testing.assert_close(found.mean, x.mean(0), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(found.covariance, x.T.cov(), atol=1e-10, rtol=1e-10)
    assert parts[1].count == 200


def test_float32_batches_are_summed_in_float64():
    x = features(2000).float() + 300
    moments = Moments(7)
    for piece in x.split(10):
        moments.update(piece)
    torch.testing.assert_close(
        moments.gaussian().covariance, x.double().T.cov(), atol=1e-9, rtol=1e-9
    )


def test_the_root_has_the_rank_of_the_covariance():
    x = features(4, 9)
    moments = Moments(9)
    moments.update(x)
    gaussian = moments.gaussian()
    assert gaussian.root.shape == (9, 3)
    torch.testing.assert_close(gaussian.root @ gaussian.root.T, gaussian.covariance)
    nothing = Gaussian(torch.zeros(2).double(), torch.zeros(2, 2).double())
    assert nothing.root.shape == (2, 0)


def test_wrong_features_and_too_few_are_refused():
    moments = Moments(3)
    with pytest.raises(ValueError, match=r"\(2, 4\), not \(B, 3\)"):
        moments.update(torch.zeros(2, 4))
    moments.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        moments.gaussian()
