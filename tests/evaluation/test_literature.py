"""FID, sFID, IS, precision, recall through the real path, against independent float64 sums."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file
from scipy.special import rel_entr, softmax

from diffit.data import Arrays
from diffit.errors import UsageError
from diffit.evaluation import EvaluationConfig, evaluate, open_features
from diffit.evaluation.distances import frechet
from diffit.evaluation.features import Extractor, Features
from diffit.evaluation.inception import Inception
from diffit.evaluation.moments import Moments

SAMPLES, REFERENCE = 12, 8


def images(count: int, seed: int) -> Arrays:
    draw = np.random.default_rng(seed)
    return Arrays(draw.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8), None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "whole.safetensors"
    torch.manual_seed(0)
    save_file(Inception().state_dict(), file)
    return file


class Recorded:
    """An extractor's function that remembers what it gave."""

    def __init__(self, extractor: Extractor) -> None:
        self.function, self.given = extractor.function, []

    def __call__(self, images: torch.Tensor) -> Features:
        self.given.append(self.function(images))
        return self.given[-1]


@pytest.fixture(scope="module")
def measured(weights):
    names = ("adm", "clean", "edm")
    extractors = [open_features("inception", weights_file=weights, protocol=p) for p in names]
    recorded = Recorded(extractors[0])
    extractors[0] = replace(extractors[0], function=recorded)
    samples, reference = images(SAMPLES, 0), images(REFERENCE, 1)
    config = EvaluationConfig(draws=0, batch=SAMPLES)
    passport = evaluate(samples, reference, features=extractors, config=config)
    return passport, recorded.given


def fid(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(a @ b + 1e-15 * np.eye(len(a)))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root).real)


def within(x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of x within the 3-neighbourhoods of y."""
    far = torch.cdist(y.double(), y.double()).sort(1).values[:, 3]
    return float((torch.cdist(x.double(), y.double()) <= far).any(1).double().mean())


def test_one_pass_gives_each_protocol_its_figures(measured):
    passport, _ = measured
    found = [(f.metric, f.protocol) for f in passport.figures]
    first = ["fd", "sfd", "is", "kid", "precision", "recall", "density", "coverage"]
    assert found == [(metric, "adm") for metric in first] + [
        (metric, protocol) for protocol in ("clean", "edm") for metric in ("fd", "kid")
    ]
    assert [f.protocol for f in passport.features] == ["adm", "clean", "edm"]
    # ADM and EDM resize alike; the others do not.
    assert passport.value("fd", "edm") == passport.value("fd", "adm")
    assert passport.value("fd", "clean") != passport.value("fd", "adm")


def test_the_moments_of_fid_and_sfid_are_those_of_all_images(measured):
    passport, (ours, theirs) = measured
    # Few images in 2048 dimensions: the closed form over singular values of centred features.
    for metric, x, y in (
        ("fd", ours.pool, theirs.pool),
        ("sfd", ours.spatial, theirs.spatial),
    ):
        a, b = (v.double() - v.double().mean(0) for v in (x, y))
        a, b = a / np.sqrt(len(a) - 1), b / np.sqrt(len(b) - 1)
        shift = (x.double().mean(0) - y.double().mean(0)).square().sum()
        expected = shift + a.square().sum() + b.square().sum()
        expected -= 2 * torch.linalg.svdvals(a @ b.T).sum()
        assert passport.value(metric, "adm") == pytest.approx(float(expected), rel=1e-4)


def test_distances_of_few_dimensions_agree_with_scipys_root():
    draw = np.random.default_rng(3)

    x, y = (
        torch.from_numpy(draw.normal(size=(400, 32)) @ draw.normal(size=(32, 32))) for _ in "ab"
    )
    sides = []
    for side in (x, y):
        moments = Moments(32)
        for part in side.split(70):
            moments.update(part)
        sides.append(moments.gaussian())
    assert frechet(*sides) == pytest.approx(fid(x, y), rel=1e-6)


def test_the_score_is_the_formula_over_ten_parts(measured):
    passport, (ours, _) = measured
    p = softmax(ours.logits.double().numpy(), axis=1)
    bounds = [part * SAMPLES // 10 for part in range(1, 10)]
    parts = np.split(p, bounds)
    scores = [np.exp(rel_entr(p, p.mean(0)).sum(1).mean()) for p in parts]
    figure = next(f for f in passport.figures if f.metric == "is")
    assert figure.value == pytest.approx(np.mean(scores), rel=1e-6)
    assert figure.settings == {"splits": 10}
    assert figure.name == "IS"


def test_precision_and_recall_are_those_of_all_pairs(measured):
    passport, (ours, theirs) = measured
    assert passport.value("precision") == within(ours.pool, theirs.pool)
    assert passport.value("recall") == within(theirs.pool, ours.pool)


def test_figures_carry_their_literature_names(measured):
    passport, _ = measured
    assert [f.name for f in passport.figures[:4]] == ["FID", "sFID", "IS", "KID"]


def test_the_score_needs_ten_samples(weights):
    features = open_features("inception", weights_file=weights, protocol="adm")
    with pytest.raises(UsageError, match="IS cannot be measured: it needs 10 samples or more"):
        evaluate(
            images(9, 0), images(9, 1), features=features, config=EvaluationConfig(metrics=("is",))
        )


def test_layers_of_one_network_share_its_spatial_distance(weights):
    layers = [
        open_features(name, weights_file=weights) for name in ("inception-768", "inception-192")
    ]
    config = EvaluationConfig(metrics=("fd", "sfd"), draws=0, batch=4)
    passport = evaluate(images(4, 0), images(4, 1), features=layers, config=config)
    names = [figure.name for figure in passport.figures]
    assert names == ["FD-768", "FD-mixed_6d-spatial", "FD-192"]
