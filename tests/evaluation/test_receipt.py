"""Receipts of approximate sampling: zero for equal images, one for unrelated ones."""

import pytest
import torch

from diffit.errors import UsageError
from diffit.evaluation.features import open_features
from diffit.evaluation.receipt import available_features, measure, paired_distance
from diffit.model import build_model
from diffit.sampling import SamplingConfig
from tiny import tiny_run


@pytest.fixture(scope="module")
def model():
    model = build_model(tiny_run().model)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=source))
    return model


def receipt(model, **approximation):
    settings = SamplingConfig(steps=6, guidance=1.5, unit=4, **approximation)
    return measure(model, range(6), labels=[0, 1, 2, 3, 4, 5], settings=settings)


def test_what_approximates_nothing_differs_by_nothing(model):
    same = receipt(model)
    assert (same.rms, same.feature_distance, same.pairs) == (0, 0, 6)
    assert same.features == "digits-cnn"
    assert 0.2 < same.speedup < 5


def test_more_of_it_differs_more_and_is_told(model):
    little, much = receipt(model, guidance_every=2), receipt(model, reuse_every=4, reuse_share=1.0)
    assert 0 < little.rms < much.rms
    assert 0 < little.feature_distance < much.feature_distance
    assert f"pixels differ by {much.rms:.2f} of 255 (rms)" in much.sentence()


def test_images_of_other_seeds_are_one_apart():
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 64, 1, 8, 8), dtype=torch.uint8, generator=source)
    distance = paired_distance(images[0], images[1], open_features("digits-cnn"))
    assert distance == pytest.approx(1, abs=0.1)
    assert paired_distance(images[0], images[0], open_features("digits-cnn")) == 0


def test_equal_images_everywhere_have_no_distance():
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    assert paired_distance(images, images, open_features("digits-cnn")) == 0


def test_the_extractor_is_the_best_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr("diffit.evaluation.weights.cache_folder", lambda: tmp_path)
    assert available_features(1).name == "digits-cnn"
    assert available_features(3).name == "patches-cnn"


def test_samples_that_diverge_are_refused(model):
    with pytest.raises(UsageError, match="not finite; try other settings"):
        measure(model, range(2), labels=0, settings=SamplingConfig(steps=2, guidance=1e300))
