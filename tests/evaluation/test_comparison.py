"""Why two measurements differ."""

import pytest

from diffit.evaluation.comparison import compare_passports
from diffit.evaluation.intervals import Interval
from diffit.evaluation.passport import FeatureInfo, Figure, Images, Passport


def passport(value: float = 10.0, **changes) -> Passport:
    name, protocol = changes.pop("features", ("inception", "adm"))
    settings = changes.pop("settings", {})
    half = changes.pop("half", 0.5)
    count = changes.pop("count", 50_000)
    figure = Figure(
        name="FID", metric="fd", features=name, protocol=protocol, value=value,
        interval=Interval(low=value - half, high=value + half, method="m") if half else None,
        samples=count, reference=10_000, better="lower", settings=settings,
    )  # fmt: skip
    content = {
        "figures": (figure,),
        "samples": Images(path="s", kind="images", count=count, shape=(3, 8, 8), hash=f"{value}"),
        "reference": Images(path="r", kind="images", count=10, shape=(3, 8, 8), hash="r"),
        "features": (
            FeatureInfo(name=name, dims=2048, hash="w" * 12, protocol=protocol, resize=protocol),
        ),
        "generation": {"seed": 0, "labels": [0, 1], "sampling": {"steps": 18, "guidance": 1.5}},
        "seed": 0,
        "versions": {"torch": "2"},
        "notes": (),
    }
    return Passport(**content | changes)


def test_a_measurement_agrees_with_itself():
    found = compare_passports(passport(), passport())
    assert found.conclusion == "The measurements agree."
    assert found.pairs[0].verdict == "equal"


@pytest.mark.parametrize(("half", "verdict"), [
    (0.1, "the first is better, beyond its interval"),
    (2.0, "the intervals overlap: the gap may be chance"),
    (0, "no intervals"),
])  # fmt: skip
def test_intervals_decide_what_a_gap_means(half, verdict):
    found = compare_passports(passport(10, half=half), passport(11, half=half))
    assert found.pairs[0].verdict.startswith(verdict)
    assert found.pairs[0].gap == pytest.approx(1)


def test_another_way_of_drawing_is_named_as_the_cause():
    drawn = {"seed": 0, "labels": [0, 1], "sampling": {"steps": 40, "guidance": 1.5}}
    found = compare_passports(passport(10), passport(9, generation=drawn))
    (difference,) = found.differences
    assert (difference.what, difference.first, difference.second) == ("steps", "18", "40")
    assert "the gaps come from what was drawn: steps" in found.conclusion


@pytest.mark.parametrize(("changes", "what"), [
    ({"features": ("inception", "clean")}, "protocol"),
    ({"features": ("dinov2", "adm")}, "features"),
    ({"reference": Images(path="q", kind="images", count=10, shape=(3, 8, 8), hash="q")},
     "reference"),
    ({"features": ("inception", "adm"), "samples":
      Images(path="s", kind="images", count=50_000, shape=(3, 16, 16), hash="z")}, "image size"),
])  # fmt: skip
def test_what_makes_figures_incomparable_is_said_first(changes, what):
    found = compare_passports(passport(10), passport(9, **changes))
    assert found.differences[0].what == what
    assert found.differences[0].weight == "incomparable"
    assert found.conclusion.startswith(f"The figures do not compare: {what} differs")
    assert len(found.pairs) == 1


def test_fewer_samples_and_other_definitions_shift_the_figures():
    found = compare_passports(passport(10), passport(12, count=5_000, settings={"subsets": 10}))
    what = {d.what: d for d in found.differences}
    assert "biased upward, here those of the second" in what["samples"].why
    assert what["settings of FID"].second == "subsets 10"
    assert "Part of each gap may come from the measurement itself" in found.conclusion


def test_labels_seeds_and_versions_are_weighed():
    drawn = {"seed": 5, "labels": [0], "sampling": {"steps": 18, "guidance": 1.5}}
    found = compare_passports(
        passport(10), passport(10.1, generation=drawn, versions={"torch": "3"})
    )
    weights = {d.what: d.weight for d in found.differences}
    assert weights == {"labels": "shifts", "seed": "shifts", "version of torch": "harmless"}


def test_the_same_images_differ_by_rounding_alone():
    one, two = passport(10), passport(10 + 1e-9)
    same = one.samples.model_copy(update={"path": "elsewhere"})
    found = compare_passports(one, two.model_copy(update={"samples": same}))
    assert found.conclusion == "The same images, measured the same way: the gaps are rounding."
    other = two.samples.model_copy(update={"hash": "others"})
    found = compare_passports(one, two.model_copy(update={"samples": other}))
    assert "the images themselves differ" in found.conclusion


def test_protocols_that_resize_alike_compare():
    edm = passport(10, features=("inception", "edm"))
    alike = edm.features[0].model_copy(update={"resize": "adm"})
    found = compare_passports(passport(10), edm.model_copy(update={"features": (alike,)}))
    assert not [d for d in found.differences if d.weight == "incomparable"]
    assert len(found.pairs) == 1


def test_nothing_in_common_is_said():
    other = passport(3)
    kid = other.figures[0].model_copy(update={"metric": "kid", "name": "KID"})
    found = compare_passports(passport(10), other.model_copy(update={"figures": (kid,)}))
    assert found.conclusion == "They have no figure in common."
    assert found.alone == ["FID", "KID"]
