"""`diffit explain evaluate` and `demo`, as a user runs them."""

import json

import numpy as np
import pytest

from diffit.cli import main
from diffit.commands.explain.measuring import Way
from diffit.commands.explain.tables import aligned, certified, radii
from diffit.explain.measures.curve import read_rows
from explained import write_classifier, write_denoiser

FEW = ["--limit", "3", "--sigmas", "0.25", "--eps", "16/255", "--n0", "8", "--n", "16"]
FEW += ["--samples", "8", "--radius-samples", "8", "--adaptive", "2", "--attack-steps", "2"]


def explain(*words):
    return main(["explain", *map(str, words)])


def evaluate(parts, out, *more):
    return explain(
        "evaluate", "builtin:digits-test", *parts, "--units", "01", "--out", out, *FEW, *more
    )


@pytest.fixture(scope="module", autouse=True)
def parts_of_two_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffit.commands.explain.evaluate.CHUNK", 2)
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    classifier, denoiser = write_classifier(root / "vit"), write_denoiser(root / "denoiser")
    return ["--classifier", str(classifier), "--denoiser", str(denoiser), "--device", "cpu"]


@pytest.fixture(scope="module")
def out(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "out"
    assert evaluate(parts, folder) == 0
    return folder


def test_it_measures_all_ways_and_writes_report_tables_and_pictures(out):
    results = json.loads((out / "results.json").read_text())
    ways = ["plain", "noise 0.25", "denoised 0.25"]
    assert results["images"] == 3
    assert results["asked"]["eps"] == {"16/255": {"01": 16 / 255, "pm1": 32 / 255}}
    assert [attack["name"] for attack in results["attacks"]] == ["0", "16/255"]
    for attack in results["attacks"]:
        assert list(attack["accuracy"]) == ways
    assert results["attacks"][0]["overlap"] == {}
    assert set(results["attacks"][1]["overlap"]) == {"raw-attention", "rollout"}
    assert [entry["way"] for entry in results["certified"]] == ways[1:]
    (adaptive,) = results["adaptive"]
    assert adaptive["way"] == "denoised 0.25"
    assert {(e["k"], e["beta"]) for e in results["radii"]} == {(4, 0.75), (4, 0.5), (8, 0.5)}
    for name in ("certified.png", "attacks.png", "maps.png"):
        assert (out / name).stat().st_size > 5_000
    report = (out / "report.html").read_text()
    assert report.count("data:image/png;base64") == 3
    assert "perturbation test" in report


def test_its_tables_of_certificates_agree_with_its_results(out):
    results = json.loads((out / "results.json").read_text())
    for entry in results["certified"]:
        rows = read_rows(out / f"certified-{entry['way'].replace(' ', '-')}.tsv")
        assert len(rows) == 3
        right = sum(row.correct for row in rows) / 3
        assert entry["certified_accuracy"]["0.0"] == pytest.approx(right)


def test_repeating_it_measures_only_what_is_missing(parts, out):
    before = (out / "results.json").read_text()
    kept = {p: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    gone, torn = sorted(kept)[0], sorted(kept)[-1]
    gone.unlink()
    torn.write_text(torn.read_text()[:20])
    assert evaluate(parts, out) == 0
    now = {p: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    assert {p for p in kept if kept[p] != now[p]} == {gone, torn}
    first, second = json.loads(before), json.loads((out / "results.json").read_text())
    for name in ("attacks", "adaptive", "radii"):
        assert first[name] == second[name]


def test_other_settings_want_another_folder(parts, out, capsys):
    assert evaluate(parts, out, "--k", "5") == 2
    assert "was begun with k 4, now it is 5" in capsys.readouterr().err
    assert evaluate(parts, out, "--precision", "bf16") == 2
    assert "was begun with precision fp32, now it is bf16" in capsys.readouterr().err


def test_more_images_may_be_taken_later(parts, out):
    kept = {p.name for p in (out / "parts").iterdir()}
    assert evaluate(parts, out, "--limit", "4") == 0
    assert json.loads((out / "results.json").read_text())["images"] == 4
    new = {p.name for p in (out / "parts").iterdir()} - kept
    assert new
    assert all(name.endswith("00002-00004.json") for name in new)


def test_plot_draws_its_results(out, tmp_path):
    assert explain("plot", out / "results.json", "--out", tmp_path / "attacks.png") == 0
    assert (tmp_path / "attacks.png").stat().st_size > 5_000


def test_without_a_denoiser_there_are_only_plain_and_noise(parts, tmp_path):
    bare = [*parts[:2], *parts[4:]]
    words = ["--methods", "raw-attention", "--adaptive", "0"]
    assert evaluate(bare, tmp_path / "out", *words, "--limit", "3") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["attacks"][0]["accuracy"]) == ["plain", "noise 0.25"]
    assert results["denoiser"] is None
    assert results["adaptive"] == []


def test_explanations_can_be_attacked_in_place_of_labels(parts, tmp_path, capsys):
    few = ["--limit", "2", "--adaptive", "0", "--methods", "raw-attention"]
    left = {}
    for name in ("pgd", "push-out", "kl"):
        assert evaluate(parts, tmp_path / name, *few, "--attack", name) == 0
        clean, attacked = (plain_maps(tmp_path / name, eps) for eps in ("0", "16-255"))
        top = clean.argsort(1)[:, -4:]
        left[name] = np.take_along_axis(attacked, top, 1).sum()
    assert "accuracy under kl on the plain classifier" in capsys.readouterr().out
    assert left["push-out"] < left["kl"]
    assert left["push-out"] < left["pgd"]


def plain_maps(out, eps):
    (part,) = (out / "parts").glob(f"attacked_plain_{eps}_*.json")
    return np.array(json.loads(part.read_text())["maps"]["plain"]["raw-attention"])


@pytest.mark.parametrize(("hits", "share"), [(1.0, 1.0), (0.2, 0.0)])
def test_certified_accuracy_counts_correct_labels_of_enough_radius(hits, share):
    one = {
        "number": 0, "true": 3, "label": 3, "selected": 3, "seconds": 1.0,
        "radius_l2": {"01": hits, "pm1": 2 * hits},
    }  # fmt: skip
    found = certified(Way("denoised 0.5", 1.0, True), [one])
    assert found["certified_accuracy"]["0.25"] == share
    assert found["certified_accuracy"]["0.0"] == 1.0
    assert found["largest_radius"]["01"] == hits


def test_radii_are_medians_and_shares_over_the_images():
    def one(number, of, radius, needed=None):
        return {
            "number": number, "method": "rollout", "k": 4, "beta": 0.5, "of": of, "m": 9,
            "form": "threshold", "eta": None if of == "point" else 0.05, "needed": needed,
            "radius_l2": {"01": radius / 2, "pm1": radius},
        }  # fmt: skip

    found = [one(i, "point", r) for i, r in enumerate((0.1, 0.2, 0.9))]
    found += [one(i, "smoothed", r, n) for i, (r, n) in enumerate([(0.1, 8), (0, 90), (0, None)])]
    (line,) = radii(Way("denoised 0.5", 1.0, True), found)
    assert line["median_of_estimates"] == {"01": 0.1, "pm1": 0.2}
    assert line["certain_above_0"] == pytest.approx(1 / 3)
    assert line["median_samples_needed"] == 90


def test_columns_are_aligned():
    assert aligned([["a", "10"], ["bcd", "2"]]) == ["a    10", "bcd   2"]


def test_the_short_demo_trains_evaluates_and_can_be_repeated(tmp_path, capsys):
    assert explain("demo", "--out", tmp_path / "demo", "--short") == 0
    shown = capsys.readouterr().out
    assert "do not judge the quality" in shown
    assert "accuracy under PGD" in shown
    assert (tmp_path / "demo" / "evaluation" / "report.html").is_file()
    weights = list((tmp_path / "demo").rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in weights}
    assert explain("demo", "--out", tmp_path / "demo", "--short") == 0
    assert before == {path: path.stat().st_mtime_ns for path in weights}
