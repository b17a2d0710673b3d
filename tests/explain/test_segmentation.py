"""Explanations as segmentations: the recorded figures of the reference, and small cases by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import FIXTURES
from diffit.errors import DataError
from diffit.explain.measures.segmentation import (
    SegmentationTotals,
    average_precision,
    resize_masks,
    scaled,
    segmentation,
)


@pytest.fixture(scope="module")
def recorded():
    # Recorded from Transformer-Explainability c3e578f in float64.
    return load_file(FIXTURES / "faithful_attribution.safetensors")


def test_the_recorded_figures_are_met(recorded):
    found = segmentation(recorded["seg/relevance"][:, 0], recorded["seg/target"])
    assert found.images == 4
    assert found.pixel_accuracy == pytest.approx(float(recorded["seg/pixel_accuracy"]), abs=1e-9)
    assert found.iou == pytest.approx(recorded["seg/iou_per_class"].tolist(), abs=1e-9)
    assert found.miou == pytest.approx(float(recorded["seg/miou"]), abs=1e-9)
    assert found.ap == pytest.approx(recorded["seg/ap_per_image"].tolist(), abs=1e-9)
    assert found.map == pytest.approx(float(recorded["seg/map"]), abs=1e-9)


def test_a_stream_of_images_gives_what_all_at_once_give(recorded):
    totals = SegmentationTotals()
    for relevance, target in zip(recorded["seg/relevance"], recorded["seg/target"], strict=True):
        totals.add(relevance, target[None])
    at_once = segmentation(recorded["seg/relevance"][:, 0], recorded["seg/target"])
    assert totals.result() == at_once


def test_figures_of_an_image_counted_by_hand():
    relevance = torch.tensor([[[4.0, 3.0], [0.0, 1.0]]])  # mean 2: the upper row is found
    target = torch.tensor([[[1, 0], [0, -1]]])
    found = segmentation(relevance, target)
    assert found.pixel_accuracy == pytest.approx(2 / 3)
    assert found.iou == pytest.approx((1 / 2, 1 / 2))
    assert found.f1 == pytest.approx((2 / 3,))
    # Scores 1, 1 are right; then .75 wrong; .25 right; then two wrong: (2/3)(1) + (1/3)(3/4).
    assert found.ap == pytest.approx((2 / 3 + 1 / 4,))


def test_a_mask_as_its_own_map_is_perfect():
    target = (torch.arange(48).reshape(3, 4, 4) % 5 == 0).long()
    found = segmentation(target.double(), target)
    assert found[1:] == (1.0, (1.0, 1.0), 1.0, (1.0,) * 3, 1.0, (1.0,) * 3, 1.0)


def test_scale_and_shift_of_a_map_change_nothing(recorded):
    maps, target = recorded["seg/relevance"][:, 0], recorded["seg/target"]
    moved, plain = segmentation(7 * maps - 3, target), segmentation(maps, target)
    assert moved.ap == pytest.approx(plain.ap, abs=1e-12)
    assert (moved.pixel_accuracy, moved.iou) == (plain.pixel_accuracy, plain.iou)


def test_a_constant_map_finds_nothing():
    found = segmentation(torch.full((1, 2, 2), 3.0), torch.tensor([[[1, 0], [0, 0]]]))
    assert found.pixel_accuracy == 0.75
    assert found.iou == (0.75, 0.0)
    assert scaled(torch.full((2, 2), 3.0)).eq(0).all()


def test_equal_scores_fall_at_one_threshold():
    scores, truth = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([False, True, True])
    assert average_precision(scores, truth) == pytest.approx(1 / 4 + 1 / 3)
    assert average_precision(scores.flip(0), truth.flip(0)) == pytest.approx(1 / 4 + 1 / 3)


def test_average_precision_of_untied_scores_is_the_mean_precision_at_the_hits():
    generator = np.random.default_rng(0)
    truth = torch.from_numpy(generator.random(200) < 0.3)
    scores = torch.from_numpy(generator.permutation(200).astype(float))
    ordered = truth[scores.argsort(descending=True)].double()
    precisions = ordered.cumsum(0) / torch.arange(1, 201)
    expected = float(precisions[ordered == 1].mean())
    assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)


def test_nothing_true_has_no_precision():
    assert average_precision(torch.arange(3.0), torch.zeros(3, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    ("maps", "targets", "sentence"),
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 5, 4), "of one size"),
        (torch.zeros(4, 4), torch.zeros(4, 4), "(images, height, width)"),
        (torch.full((1, 2, 2), torch.nan), torch.zeros(1, 2, 2), "not finite"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 255), "a mask holds 255"),
        (torch.zeros(2, 2, 2), torch.tensor([[[0, 1]] * 2, [[-1, -1]] * 2]), "mask 1 is unknown"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(maps, targets, sentence):
    with pytest.raises(DataError) as error:
        segmentation(maps, targets)
    assert sentence in str(error.value)


def test_masks_are_resized_as_pillow_does_it_to_the_nearest_pixel():
    mask = torch.arange(35).reshape(5, 7) % 3 - 1
    image = Image.fromarray(mask.numpy().astype(np.int32))
    for size in ((3, 4), (10, 14), (8, 5)):
        expected = np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))
        assert np.array_equal(resize_masks(mask[None], size)[0].numpy(), expected)


def test_no_image_makes_no_figure():
    with pytest.raises(DataError, match="at least one"):
        SegmentationTotals().result()
