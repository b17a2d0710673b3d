"""Inception on its real weights, where these and CIFAR-10 are at hand; minutes on one core.

    DIFFIT_DATA=/path/to/data python -m pytest -m soak tests/evaluation/test_inception_real.py

The folder holds `inception/inception_2015_12_05_to_mixed_7a_fp16.safetensors` and, as sheets of
100 x 100 images, `cifar10/data_batch_1.webp` and `cifar10/test_batch.webp`.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffit.data import Arrays
from diffit.evaluation import EvaluationConfig, evaluate, open_features

DATA = Path(os.environ.get("DIFFIT_DATA", "absent"))
WEIGHTS = DATA / "inception" / "inception_2015_12_05_to_mixed_7a_fp16.safetensors"
CONFIG = EvaluationConfig(metrics=("fd",), draws=0, batch=25)

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="DIFFIT_DATA names no real Inception weights"),
]


def cifar(name: str) -> Arrays:
    """The first 1500 images of a sheet."""
    sheet = np.asarray(Image.open(DATA / "cifar10" / f"{name}.webp"))
    images = sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    return Arrays(images[:1500], None)


@pytest.mark.parametrize(
    ("layer", "expected"), [("64", 0.0171), ("192", 0.0908), ("768", 0.1020), ("mixed_7a", 2.131)]
)
def test_cifar_train_against_test_gives_the_figures_of_an_independent_port(layer, expected):
    features = open_features(f"inception-{layer}", weights_file=WEIGHTS)
    train, test = cifar("data_batch_1"), cifar("test_batch")
    found = evaluate(train, test, features=features, config=CONFIG).value("fd")
    assert found == pytest.approx(expected, rel=0.005)
