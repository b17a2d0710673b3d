"""What denoised smoothing is for, on digits: it keeps labels and maps under attack, and certifies.

The weights are those of `diffit explain demo`, trained by the library on its built-in digits:
`diffit explain train-classifier` (no noise in training) and `diffit train digits-denoiser`.
"""

from functools import partial
from pathlib import Path

import pytest
import torch

from diffit.checkpoint import load
from diffit.data import open_dataset
from diffit.explain.attacks import AttackConfig, attack
from diffit.explain.attribution import token_maps
from diffit.explain.fitting import denoise_of
from diffit.explain.measures.robustness import overlap
from diffit.explain.opening import open_classifier
from diffit.explain.smoothed import certify, mean_map, predict
from diffit.explain.smoothing import Smoothed, Smoothing
from diffit.explain.units import to_pm1

FOLDER = Path(__file__).parent.parent / "fixtures" / "smoothed_digits"
COUNT, COPIES = 40, 32


@pytest.fixture(scope="module")
def classifier():
    return open_classifier(str(FOLDER / "classifier"))


@pytest.fixture(scope="module")
def denoise():
    return denoise_of(load(FOLDER / "denoiser"))


@pytest.fixture(scope="module")
def digits():
    test = open_dataset("builtin:digits-test")
    images = torch.stack([torch.from_numpy(test[i].image) for i in range(COUNT)]) / 127.5 - 1
    return images, torch.tensor([test[i].label for i in range(COUNT)])


@pytest.fixture(scope="module")
def attacked(classifier, digits):
    config = AttackConfig(eps=16 / 255, units="01", steps=20)
    return attack(config, classifier, *digits)


def behind_noise(classifier, denoise, seed=0):
    """Raw attention and labels at sigma 0.25 of pixels in [0, 1]."""
    smoothing = Smoothing(to_pm1(0.25, "01"), denoise, seed=seed)
    return Smoothed(classifier, smoothing, partial(token_maps, "raw-attention", classifier))


def accuracy(smoothed, images, labels):
    right = 0
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        counts = predict(smoothed, image, n=COPIES, number=number).counts
        right += counts.index(max(counts)) == int(label)
    return right / len(images)


def test_the_denoiser_gives_back_what_noise_takes_from_accuracy(classifier, denoise, digits):
    without = accuracy(behind_noise(classifier, None), *digits)
    assert accuracy(behind_noise(classifier, denoise), *digits) >= without + 0.08


def test_accuracy_under_attack_is_kept(classifier, denoise, digits, attacked):
    labels = digits[1]
    plain = float((classifier(attacked).argmax(1) == labels).float().mean())
    without = accuracy(behind_noise(classifier, None), attacked, labels)
    kept = accuracy(behind_noise(classifier, denoise), attacked, labels)
    assert kept >= plain + 0.25
    assert kept >= without + 0.25


def test_the_top_of_the_attention_moves_less_under_attack(classifier, denoise, digits, attacked):
    images, labels = digits
    explain = partial(token_maps, "raw-attention", classifier)
    plain = overlap(explain(images, labels), explain(attacked, labels), 4).mean()

    def smoothed(images, seed):
        behind = behind_noise(classifier, denoise, seed)
        maps = [mean_map(behind, x, None, m=COPIES, number=i).mean for i, x in enumerate(images)]
        return torch.stack(maps)

    # Other noise for the attacked images: the same would flatter the overlap.
    assert overlap(smoothed(images, 0), smoothed(attacked, 1), 4).mean() >= plain + 0.03


def test_half_of_the_digits_are_certified_within_a_quarter(classifier, denoise, digits):
    behind = behind_noise(classifier, denoise)
    certificates = [
        certify(behind, image, n0=32, n=128, number=i) for i, image in enumerate(digits[0])
    ]
    held = [
        one.label == int(label) and one.radius_l2 >= to_pm1(0.25, "01")
        for one, label in zip(certificates, digits[1], strict=True)
    ]
    assert sum(held) / COUNT >= 0.5
