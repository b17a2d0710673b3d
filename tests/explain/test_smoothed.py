"""Predict, certify, map and region of images whose smoothed classifier is a formula."""

import numpy as np
import pytest
import torch
from smoothed_models import SHAPE, at, chance, halves, opened, shares

from diffit.errors import DataError, UsageError
from diffit.explain.bounds import Moments
from diffit.explain.smoothed import SmoothedMap, certify, mean_map, predict, region, votes
from diffit.explain.smoothing import Smoothed, Smoothing
from oracle import Gaussian

DISTANCES = [0.1, 0.3, 0.6, 1.0]


@pytest.mark.parametrize("denoise", [None, Gaussian(0.0, 0.5)], ids=["plain", "denoised"])
def test_no_certified_radius_passes_the_boundary_of_the_smoothed_classifier(denoise):
    """The plane through 0 stays the boundary behind noise, and behind a linear denoiser."""
    smoothed = Smoothed(halves(), Smoothing(0.5, denoise, clip=False))
    for number, distance in enumerate(DISTANCES):
        found = certify(smoothed, at(distance), n=2000, number=number)
        assert found.label == (1 if found.radius_l2 else None)
        assert found.radius_l2 <= distance
    assert found.radius_l2 > 0.75 * distance


def test_the_votes_follow_the_probability_of_the_class():
    smoothed = Smoothed(halves(), Smoothing(0.5))
    *_, all_votes = votes(smoothed, at(0.3), 4000, "estimation")
    p = chance(0.3, 0.5)
    assert all_votes.counts[1] / 4000 == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)
    assert all_votes.mean_probabilities.sum() == pytest.approx(1)
    assert all_votes.n == 4000


def test_votes_come_after_every_unit():
    smoothed = Smoothed(halves(), Smoothing(0.5, unit=64))
    told = []
    drawn = [v.n for v in votes(smoothed, at(0.3), 150, "prediction", tell=told.append)]
    assert (drawn, told) == ([64, 128, 150], [64, 64, 22])


def test_a_clear_image_is_predicted_and_an_even_one_is_not():
    smoothed = Smoothed(halves(), Smoothing(0.5))
    assert predict(smoothed, at(1.0)).label == 1
    assert predict(smoothed, at(-1.0)).label == 0
    even = predict(smoothed, at(0.0))
    assert even.label is None
    assert even.p_value > even.alpha
    assert (even.seed, even.number, even.n) == (0, 0, 1000)


def test_a_prediction_ends_once_it_is_decided():
    smoothed = Smoothed(halves(), Smoothing(0.5, unit=50))
    found = predict(smoothed, at(1.0), n=1000)
    assert sum(found.counts) < 700
    assert found.n == 1000


def test_a_certificate_ends_early_only_to_abstain_or_where_a_radius_is_enough():
    smoothed = Smoothed(halves(), Smoothing(0.5, unit=50))
    hopeless = certify(smoothed, at(0.0), n=2000)
    assert (hopeless.label, hopeless.radius_l2) == (None, 0)
    assert hopeless.drawn < 2000
    full = certify(smoothed, at(1.0), n=2000)
    assert full.drawn == 2000
    early = certify(smoothed, at(1.0), n=2000, enough=0.25)
    assert early.drawn < 2000
    assert 0.25 <= early.radius_l2 < full.radius_l2
    assert early.label == full.label == 1


def test_selection_and_estimation_draw_different_copies():
    smoothed = Smoothed(halves(), Smoothing(0.5))
    *_, first = votes(smoothed, at(0.2), 500, "selection")
    *_, second = votes(smoothed, at(0.2), 500, "estimation")
    assert first.probabilities.tolist() != second.probabilities.tolist()


def test_the_mean_map_is_the_expected_one():
    """Against the same expectation by other draws: 200,000 of them."""
    smoothed = Smoothed(halves(), Smoothing(0.5), shares)
    found = mean_map(smoothed, at(0.3), 1, m=20_000)
    noise = torch.randn(200_000, *SHAPE, generator=torch.Generator().manual_seed(1))
    expected = shares(at(0.3) + 0.5 * noise, torch.ones(200_000)).mean(0)
    torch.testing.assert_close(found.mean.float(), expected, atol=6e-3, rtol=0)
    assert found.mean.sum() == pytest.approx(1)
    assert found.std.shape == found.mean.shape == (4,)
    assert found.moments.n == 20_000


def test_a_region_is_certified_from_a_map_and_the_label_it_explains():
    smoothed = opened(0.5)
    found = mean_map(smoothed, at(0.6), 1, m=3000)
    label = certify(smoothed, at(0.6))
    whole = region(smoothed, found, dimensions=16, k=1, beta=1.0, gamma=0.5, label=label)
    assert whole.radius_l2 > 0
    assert whole.radius_l2 == min(whole.map.radius_l2, whole.prediction_radius_l2, label.radius_l2)
    assert (whole.map.seed, whole.map.m, whole.map.dimensions) == (3, 3000, 16)


def test_a_region_says_which_class_is_explained():
    smoothed = opened(0.5)

    def explained(shown, **more):
        found = mean_map(smoothed, at(0.6), shown, m=64)
        whole = region(smoothed, found, dimensions=16, k=1, beta=1.0, gamma=0.5, **more)
        return whole.map.explained

    assert "explains one class" in explained(1)
    assert "each noisy image" in explained(None)
    assert "depends on no class" in explained(1, by_class=False)
    label = certify(smoothed, at(0.6))
    assert "label certificate" in explained(1, label=label)


def test_a_map_and_a_label_of_two_classes_make_no_region():
    smoothed = opened(0.5)
    found = SmoothedMap(Moments(np.full(4, 0.25), np.zeros(4), 9), (4,), 0)
    with pytest.raises(ValueError, match="explains class 0, the certificate is of class 1"):
        region(smoothed, found, dimensions=16, k=1, beta=1.0, gamma=0.5,
               label=certify(smoothed, at(1.0)))  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: predict(s, at(0.1), n=0), ValueError, "0 copies of an image say nothing"),
        (lambda s: certify(s, at(0.1)[None]), ValueError, "one image is"),
        (lambda s: certify(s, 255 * at(1.0).abs()), DataError, "they must lie in"),
        (lambda s: certify(s, at(0.1) / 0), DataError, "they must lie in"),
        (lambda s: mean_map(s, at(0.1), 2), UsageError, "class 2 is none of this classifier's"),
    ],
)
def test_what_is_no_image_or_class_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(opened(0.5))
