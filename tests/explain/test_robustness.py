"""Distances of maps against closed forms and SciPy; sensitivity against a map that is linear."""

import math

import pytest
import torch
from scipy import stats

from diffit import draws
from diffit.errors import DataError
from diffit.explain import overlap as certified
from diffit.explain.measures.robustness import (
    kl,
    overlap,
    renyi,
    sensitivity_max,
    spearman,
    tokens_of,
)

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
Q = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]], dtype=torch.float64)


def test_overlap_counts_the_common_part_of_the_largest():
    a = torch.tensor([[5.0, 4, 3, 2, 1, 0]])
    b = torch.tensor([[5.0, 0, 1, 2, 3, 4]])
    assert [float(overlap(a, b, k)) for k in (1, 2, 3, 6)] == [1, 1 / 2, 1 / 3, 1]
    assert torch.equal(overlap(a, b, 3), overlap(b, a, 3))


def test_of_equal_entries_the_first_is_the_larger():
    a, b = torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[2.0, 1, 0, 0]])
    assert float(overlap(a, b, 2)) == 1


@pytest.mark.parametrize(
    ("share", "n", "k"), [(0.1, 16, 2), (0.25, 196, 49), (0.01, 16, 1), (1, 9, 9)]
)
def test_a_share_of_the_tokens_is_rounded_and_never_none(share, n, k):
    assert tokens_of(share, n) == k


@pytest.mark.parametrize("alpha", [1.01, 2.0, 5.0])
def test_renyi_is_its_definition(alpha):
    expected = torch.log((P.double() ** alpha * Q.double() ** (1 - alpha)).sum(1)) / (alpha - 1)
    assert torch.allclose(renyi(P, Q, alpha), expected, rtol=1e-6)
    assert torch.allclose(renyi(3 * P, 7 * Q, alpha), expected, rtol=1e-6)


def test_renyi_of_order_one_is_kl_and_the_limit():
    expected = torch.tensor([stats.entropy(p, q) for p, q in zip(P, Q, strict=True)])
    assert torch.allclose(kl(P, Q).float(), expected.float(), rtol=1e-5)
    assert torch.allclose(renyi(P, Q, 1 + 1e-6), kl(P, Q), rtol=1e-4)


def test_batches_agree_with_the_certificates_own_overlap_and_divergence():
    a, b = (draws.normal(0, range(3), name, (12,)).exp().round(decimals=1) + 0.1 for name in "ab")
    a, b = (x.double() / x.double().sum(1, keepdim=True) for x in (a, b))
    assert overlap(a, b, 5).tolist() == [
        certified.overlap(x.numpy(), y.numpy(), 5) for x, y in zip(a, b, strict=True)
    ]
    assert renyi(a, b, 2.5).tolist() == pytest.approx(
        [certified.renyi(x.numpy(), y.numpy(), 2.5) for x, y in zip(a, b, strict=True)]
    )


def test_what_the_other_map_rules_out_is_infinitely_far():
    a, b = torch.tensor([[0.5, 0.5, 0]]), torch.tensor([[1.0, 0, 0]])
    for alpha in (1.0, 2.0):
        assert float(renyi(a, b, alpha)) == math.inf
        assert math.isfinite(float(renyi(b, a, alpha)))
        assert float(renyi(b, b, alpha)) == 0


def test_spearman_agrees_with_scipy_with_ties_and_without():
    a = draws.normal(0, range(4), "a", (20,))
    b = a + draws.normal(0, range(4), "b", (20,))
    b[2:] = b[2:].round()
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_constant_map_has_no_rank_correlation():
    assert spearman(torch.ones(1, 4), torch.arange(4.0)[None]).isnan().all()


def test_sensitivity_of_a_linear_map_stays_below_its_bound_and_comes_near():
    def explain(images):
        return images.flatten(1)[:, :1]  # the first pixel: at most `radius` away

    images = torch.full((1, 1, 2, 2), 0.5)
    found = [float(sensitivity_max(explain, images, radius=0.1, samples=n)) for n in (1, 10, 100)]
    assert found == sorted(found)
    assert 0.95 * 0.2 < found[-1] <= 0.2  # 0.1 / 0.5


def test_sensitivity_follows_from_seed_and_number_alone():
    def explain(images):
        return images.flatten(1).square()

    images = 0.5 * draws.normal(1, range(3), "images", (1, 4, 4)).clamp(-1, 1)
    together = sensitivity_max(explain, images, radius=0.1, numbers=[5, 6, 7])
    alone = torch.cat(
        [sensitivity_max(explain, images[i : i + 1], radius=0.1, numbers=[5 + i]) for i in range(3)]
    )
    assert torch.equal(together, alone)
    assert not torch.equal(together, sensitivity_max(explain, images, radius=0.1, seed=1))


def test_a_map_that_never_changes_is_not_sensitive():
    flat = sensitivity_max(lambda x: torch.zeros(len(x), 3), torch.zeros(2, 1, 2, 2), radius=0.1)
    assert flat.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        (lambda: overlap(P, Q, 4), "choose k from 1 to 3"),
        (lambda: overlap(P, Q, 0), "choose k from 1 to 3"),
        (lambda: overlap(P, Q[:, :2], 1), "of one size"),
        (lambda: overlap(P[0], Q[0], 1), "(images, entries)"),
        (lambda: tokens_of(0, 16), "no share of the tokens"),
        (lambda: renyi(P, Q, 0.5), "must be 1 or more"),
        (lambda: renyi(-P, Q, 2), "positive part"),
        (lambda: kl(0 * P, Q), "not all zero"),
        (lambda: spearman(P / 0, Q), "not finite"),
        (lambda: sensitivity_max(torch.abs, torch.zeros(1, 1, 2, 2), radius=0), "radius above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_a_sentence(compute, sentence):
    with pytest.raises(DataError) as error:
        compute()
    assert sentence in str(error.value)
