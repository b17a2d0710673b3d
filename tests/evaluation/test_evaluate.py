"""Measuring as a library: passes, plans, figures, notes."""

import numpy as np
import pytest
import torch

from diffit.data import Arrays, open_dataset
from diffit.errors import UsageError
from diffit.evaluation import EvaluationConfig, Statistics, evaluate, open_features, plan
from diffit.evaluation.distances import frechet, kid
from diffit.evaluation.measuring import measure
from diffit.evaluation.neighbours import neighbours

DIGITS = open_dataset("builtin:digits")
HELD_OUT = open_dataset("builtin:digits-test")
FEATURES = open_features("digits-cnn")


def first(count: int, *, labels: bool = True, channels: int = 1) -> Arrays:
    examples = [HELD_OUT[i] for i in range(count)]
    images = np.stack([e.image.transpose(1, 2, 0).repeat(channels, 2) for e in examples])
    values = np.array([e.label for e in examples]) if labels else None
    return Arrays(images, values, DIGITS.classes if labels else ())


def all_features(images) -> torch.Tensor:
    return FEATURES(
        torch.stack(
            [torch.from_numpy(e.image) for e in map(images.__getitem__, range(len(images)))]
        )
    ).pool


def test_the_streaming_path_equals_the_one_in_memory():
    x = all_features(HELD_OUT)
    for batch in (1, 50, 1000):
        found = measure(HELD_OUT, FEATURES, keep=10_000, groups=10, batch=batch)
        torch.testing.assert_close(found.kept, x, atol=1e-4, rtol=1e-4)
        exact = found.kept.double()
        torch.testing.assert_close(found.pool.mean, exact.mean(0), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(found.pool.covariance, exact.T.cov(), atol=1e-10, rtol=1e-10)
        assert found.count == 299
        sizes = [group.count for group in found.groups]
        assert sum(sizes) == 299
        assert max(sizes) - min(sizes) <= 3


def test_a_bound_keeps_a_random_subset_that_follows_from_the_seed():
    every = measure(HELD_OUT, FEATURES, keep=299).kept
    some = measure(HELD_OUT, FEATURES, keep=40, seed=1)
    assert some.kept.shape == (40, 64)
    assert some.count == some.groups[0].count + sum(g.count for g in some.groups[1:]) == 299
    near = torch.cdist(some.kept, every).argmin(1)
    assert near.unique().numel() == 40
    assert torch.equal(some.kept, measure(HELD_OUT, FEATURES, keep=40, seed=1).kept)
    assert not torch.equal(some.kept, measure(HELD_OUT, FEATURES, keep=40, seed=2).kept)
    assert measure(HELD_OUT, FEATURES, keep=0).kept is None


def test_the_hash_is_of_the_pixels_in_order():
    a = measure(first(10), FEATURES).hash
    assert a == measure(first(10), FEATURES, batch=3).hash
    assert a != measure(first(11), FEATURES).hash


def test_figures_are_the_distances_of_the_features():
    passport = evaluate(HELD_OUT, DIGITS, features=FEATURES, config=EvaluationConfig(draws=20))
    ours, theirs = all_features(HELD_OUT), all_features(DIGITS)
    both = [measure(side, FEATURES).pool for side in (HELD_OUT, DIGITS)]
    found = neighbours(ours, theirs)
    expected = {
        "fd": frechet(*both),
        "kid": float(kid(ours, theirs)),
        "precision": float(found.precision.mean()),
        "recall": float(found.recall.mean()),
        "density": float(found.density.mean()),
        "coverage": float(found.coverage.mean()),
    }
    for metric, value in expected.items():
        assert passport.value(metric) == pytest.approx(value, rel=1e-3, abs=1e-4), metric
    assert passport.value("accuracy") == pytest.approx(0.99, abs=0.004)
    for figure in passport.figures:
        assert figure.interval.low <= figure.interval.high
        assert figure.samples == 299
    assert [f.metric for f in passport.figures] == [*expected, "accuracy"]
    assert passport.reference.count == 1498


def test_the_same_call_gives_the_same_figures():
    config = EvaluationConfig(draws=10, kid_subset=50, kid_subsets=5)
    one, two = (evaluate(HELD_OUT, DIGITS, features=FEATURES, config=config) for _ in range(2))
    assert one == two
    kid_figure = one.figures[1]
    assert kid_figure.settings == {"subsets": 5, "subset_size": 50}


def test_statistics_stand_for_images_and_leave_pairs_out():
    direct = evaluate(HELD_OUT, DIGITS, features=FEATURES, config=EvaluationConfig(draws=5))
    known = measure(DIGITS, FEATURES).statistics(FEATURES)
    passport = evaluate(HELD_OUT, known, features=FEATURES, config=EvaluationConfig(draws=5))
    assert [f.metric for f in passport.figures] == ["fd", "accuracy"]
    assert passport.value("fd") == pytest.approx(direct.value("fd"), rel=1e-9)
    assert (passport.reference.kind, passport.reference.count) == ("statistics", 1498)


def test_statistics_with_example_images_give_pairs_from_these():
    known = measure(DIGITS, FEATURES).statistics(FEATURES)
    both = Statistics(pool=known.pool, images=first(60))
    passport = evaluate(HELD_OUT, both, features=FEATURES, config=EvaluationConfig(draws=0))
    counts = {f.metric: f.reference for f in passport.figures}
    assert (counts["fd"], counts["kid"], counts["recall"]) == (None, 60, 60)
    assert all(f.interval is None for f in passport.figures)
    assert any("do not say which features" in note for note in passport.notes)


def test_notes_say_what_a_reader_must_know():
    config = EvaluationConfig(metrics=("fd", "kid"), keep=30, draws=0)
    notes = " ".join(evaluate(first(50), first(50), features=FEATURES, config=config).notes)
    assert "small classifier digits-cnn, not comparable to FID" in notes
    assert "50 samples are too few for 64 dimensions" in notes
    assert "50 reference images are too few for 64 dimensions" in notes
    assert "use 30 random ones of 50 samples" in notes
    assert "use 30 random ones of 50 reference images" in notes
    assert "samples and reference are the same images" in notes
    many = evaluate(HELD_OUT, DIGITS, features=FEATURES, config=config).notes
    assert any("of 299 samples is biased upward" in note for note in many)


def test_when_not_all_features_are_kept_the_jackknife_steps_in():
    config = EvaluationConfig(metrics=("fd",), keep=100, draws=20)
    (figure,) = evaluate(HELD_OUT, DIGITS, features=FEATURES, config=config).figures
    assert "jackknife over 10 groups" in figure.interval.method
    few = evaluate(
        first(12), DIGITS, features=FEATURES, config=config.model_copy(update={"keep": 6})
    )
    assert few.figures[0].interval is None


def test_accuracy_counts_labels_by_the_names_of_classes():
    examples = [HELD_OUT[i] for i in range(100)]
    images = np.stack([e.image.transpose(1, 2, 0) for e in examples])
    # The same digits with their classes in another order, and one label in ten wrong.
    order = tuple(reversed(DIGITS.classes))
    values = np.array([9 - e.label for e in examples])
    values[::10] = (values[::10] + 1) % 10
    config = EvaluationConfig(metrics=("accuracy",))
    figure = evaluate(Arrays(images, values, order), DIGITS, features=FEATURES, config=config)
    assert figure.value("accuracy") == pytest.approx(0.9, abs=0.03)


def test_figures_over_the_shipped_features_tell_good_samples_from_bad():
    examples = [HELD_OUT[i] for i in range(len(HELD_OUT))]
    pixels = np.stack([e.image.transpose(1, 2, 0) for e in examples])
    labels = np.array([e.label for e in examples])
    noise = np.random.default_rng(0).normal(size=pixels.shape)
    one_each = pixels[[int(np.argmax(labels == label)) for label in labels]]
    config = EvaluationConfig(draws=0)

    def measured(images: np.ndarray):
        samples = Arrays(images, labels, DIGITS.classes)
        return evaluate(samples, DIGITS, features=FEATURES, config=config)

    noisy = [measured((pixels + s * noise).clip(0, 255).astype(np.uint8)) for s in (0, 25, 60)]
    for metric in ("fd", "kid"):
        real, worse, worst = (passport.value(metric) for passport in noisy)
        assert real < worse < worst
    for metric in ("precision", "density", "coverage", "accuracy"):
        real, worse, worst = (passport.value(metric) for passport in noisy)
        assert real > worse > worst
    # One digit of each class, drawn again and again: precise, but nothing of the variety.
    collapsed = measured(one_each)
    assert collapsed.value("precision") > 0.8
    assert collapsed.value("recall") < 0.05
    assert collapsed.value("fd") > 10 * noisy[0].value("fd")


def test_progress_is_told_for_both_sides():
    seen = []
    config = EvaluationConfig(batch=40, draws=0, metrics=("fd",))
    evaluate(
        first(100), first(60), features=FEATURES, config=config,
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert seen == [
        ("samples", 40, 100), ("samples", 80, 100), ("samples", 100, 100),
        ("reference", 40, 60), ("reference", 60, 60),
    ]  # fmt: skip


def one_class() -> Arrays:
    examples = [HELD_OUT[i] for i in range(10)]
    images = np.stack([e.image.transpose(1, 2, 0) for e in examples])
    return Arrays(images, np.zeros(10, dtype=int), ("cat",))


DOUBLED = open_dataset("builtin:digits", size=16)
REFUSED = {
    "one sample": (
        first(1), DIGITS, {"metrics": ("fd",)},
        r"FD \(digits-cnn\) cannot be measured: it needs 2 samples or more, and there are only 1",
    ),
    "one sample, nothing asked": (
        first(1, labels=False), DIGITS, {}, "it needs 2 samples or more",
    ),
    "precision of three": (
        first(3), DIGITS, {"metrics": ("precision",)}, "needs 4 samples or more, .* are only 3",
    ),
    "coverage of five": (
        DIGITS, first(5), {"metrics": ("coverage",)}, "needs 6 reference images .* are only 5",
    ),
    "channels": (
        first(9, channels=3), DIGITS, {}, "8 x 8 with 3 channels, the reference is 8 x 8 with 1 ch",
    ),
    "size": (first(9), DOUBLED, {}, "samples are 8 x 8 .* the reference is 16 x 16"),
    "subset": (first(20), DIGITS, {"kid_subset": 30}, "--kid-subset 30 is more than the 20 images"),
    "no labels": (
        first(9, labels=False), DIGITS, {"metrics": ("accuracy",)}, "the samples have no labels",
    ),
    "strange class": (
        one_class(), DIGITS, {"metrics": ("accuracy",)}, "'cat' is none that digits-cnn knows: 0",
    ),
    "no metrics": (first(9), DIGITS, {"metrics": ()}, "--metrics names none; choose from fd, sfd"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_measured_is_refused(kind):
    samples, reference, settings, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message):
        plan(samples, reference, FEATURES, EvaluationConfig(**settings))


def test_pairs_against_statistics_alone_are_refused():
    known = measure(DIGITS, FEATURES).statistics(FEATURES)
    config = EvaluationConfig(metrics=("fd", "recall"))
    with pytest.raises(UsageError, match=r"recall .* the reference holds statistics alone"):
        plan(HELD_OUT, known, FEATURES, config)


def test_spatial_moments_need_an_extractor_that_has_them():
    with pytest.raises(ValueError, match="digits-cnn has no spatial features"):
        measure(HELD_OUT, FEATURES, spatial=True)
