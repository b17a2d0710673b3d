"""`diffit explain predict`, `certify`, `map`, `region` and `plot`, as a user runs them."""

import json
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffit.cli import main
from diffit.commands.explain.arguments import Opened, Parts, digest, network_of, smooth
from diffit.commands.explain.plot import table_name
from diffit.explain.binomial import lower_bound
from diffit.explain.classifier_folder import load_classifier
from diffit.explain.measures.curve import read_rows
from explained import write_classifier, write_denoiser

DIGITS = "builtin:digits-test"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    classifier, denoiser = write_classifier(root / "vit"), write_denoiser(root / "denoiser")
    return ["--classifier", str(classifier), "--denoiser", str(denoiser), "--device", "cpu"]


NOISE = ["--sigma", "0.25", "--units", "01"]


def explain(*words):
    return main(["explain", *map(str, words)])


def test_predict_prints_a_label_and_writes_the_counts(parts, tmp_path, capsys):
    out = tmp_path / "labels.json"
    words = ["predict", f"{DIGITS}:3", f"{DIGITS}:4", *parts, *NOISE, "--samples", "100"]
    assert explain(*words, "--out", out) == 0
    assert f"{DIGITS}:3" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["asked"]["sigma"] == {"01": 0.25, "pm1": 0.5}
    assert results["asked"]["units"] == "01"
    assert [len(one["counts"]) for one in results["images"]] == [10, 10]
    for one in results["images"]:
        assert (one["label"] is None) == (one["p_value"] > 0.001)
    assert results["denoiser"]["hash"]
    assert len(results["classifier"]["hash"]) == 32


def test_a_file_is_predicted_like_the_member_of_the_set_that_it_holds(parts, tmp_path):
    from diffit.data import open_dataset

    pixels = open_dataset(DIGITS)[0].image
    Image.fromarray(pixels[0]).save(tmp_path / "digit.png")
    found = {}
    for name in (f"{DIGITS}:0", tmp_path / "digit.png"):
        words = ["predict", name, *parts, *NOISE, "--samples", "64", "--out", tmp_path / "a.json"]
        assert explain(*words) == 0
        (one,) = json.loads((tmp_path / "a.json").read_text())["images"]
        found[str(name)] = one["counts"]
    first, second = found.values()
    assert first == second


def certify(parts, out, *more):
    words = ["certify", DIGITS, *parts, *NOISE, "--out", out, "--n0", "20", "--n", "64"]
    return explain(*words, *more)


def test_certify_writes_the_table_of_the_literature_and_its_radii_follow(parts, tmp_path, capsys):
    assert certify(parts, tmp_path / "out", "--every", "7", "--limit", "5") == 0
    assert "5 images" in capsys.readouterr().out
    table = tmp_path / "out" / "certificates.tsv"
    assert table.read_text().splitlines()[0].split("\t") == [
        "idx", "label", "predict", "radius", "correct", "time"
    ]  # fmt: skip
    rows = read_rows(table)
    assert [row.idx for row in rows] == [0, 7, 14, 21, 28]
    # 64 copies allow these radii and no others: sigma * Phi^-1 of the bound on k of 64 votes.
    allowed = [0.25 * NormalDist().inv_cdf(lower_bound(k, 64, 0.001)) for k in range(40, 65)]
    for row in rows:
        assert row.radius == 0 or min(abs(row.radius - a) for a in allowed) < 1e-9
        assert row.predict == -1 or row.radius >= 0
    record = json.loads((tmp_path / "out" / "certificates.json").read_text())
    assert record["asked"]["sigma"] == {"01": 0.25, "pm1": 0.5}
    assert record["summary"]["radius_units"] == "01"
    assert (tmp_path / "out" / "certified.png").stat().st_size > 5_000


def test_units_scale_sigma_and_radii_and_nothing_else(parts, tmp_path):
    assert certify(parts, tmp_path / "a", "--limit", "4") == 0
    words = ["certify", DIGITS, *parts, "--sigma", "0.5", "--units", "pm1", "--n0", "20"]
    assert explain(*words, "--n", "64", "--limit", "4", "--out", tmp_path / "b") == 0
    first, second = (read_rows(tmp_path / x / "certificates.tsv") for x in "ab")
    for a, b in zip(first, second, strict=True):
        assert (a.predict, a.correct) == (b.predict, b.correct)
        assert b.radius == pytest.approx(2 * a.radius)


def test_a_killed_certification_keeps_its_rows_and_repeats_the_torn_one(parts, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for out in (whole, torn):
        assert certify(parts, out, "--limit", "4") == 0
    lines = (torn / "certificates.tsv").read_text().splitlines(keepends=True)
    first = lines[1]
    (torn / "certificates.tsv").write_text("".join(lines[:3]) + lines[3][:9])
    assert certify(parts, torn, "--limit", "4") == 0
    again = (torn / "certificates.tsv").read_text().splitlines(keepends=True)
    assert again[1] == first  # not computed anew: its time is the old one
    known = [
        [r._replace(seconds=0) for r in read_rows(x / "certificates.tsv")] for x in (whole, torn)
    ]
    assert known[0] == known[1]


def test_a_longer_limit_continues_the_table(parts, tmp_path):
    assert certify(parts, tmp_path / "out", "--limit", "2") == 0
    before = (tmp_path / "out" / "certificates.tsv").read_text()
    assert certify(parts, tmp_path / "out", "--limit", "3") == 0
    after = (tmp_path / "out" / "certificates.tsv").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 4


def test_two_processes_find_what_one_does(parts, tmp_path):
    for count in (1, 2):
        out = tmp_path / str(count)
        assert certify(parts, out, "--limit", "2", "--processes", str(count)) == 0
    one, two = (read_rows(tmp_path / x / "certificates.tsv") for x in "12")
    assert [r._replace(seconds=0) for r in one] == [r._replace(seconds=0) for r in two]


def test_map_draws_a_picture_and_writes_maps_that_are_laws(parts, tmp_path, capsys):
    out = tmp_path / "maps.png"
    words = ["map", f"{DIGITS}:0", f"{DIGITS}:1", *parts, *NOISE, "--samples", "16", "--out", out]
    assert explain(*words) == 0
    assert "explained for" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > 600
    results = json.loads((tmp_path / "maps.json").read_text())
    assert results["grid"] == [4, 4]
    for one in results["images"]:
        assert len(one["smoothed"]) == 16
        assert sum(one["smoothed"]) == pytest.approx(1)
        assert sum(one["plain"]) == pytest.approx(1)
        assert 0 <= one["overlap"] <= 1


@pytest.mark.parametrize("method", ["raw-attention", "rollout", "gradcam", "smoothgrad"])
def test_map_takes_every_kind_of_method_and_a_class_by_name(parts, tmp_path, method):
    words = ["map", f"{DIGITS}:2", *parts, *NOISE, "--samples", "4", "--out", tmp_path / "m.png"]
    assert explain(*words, "--method", method, "--target", "7") == 0
    (one,) = json.loads((tmp_path / "m.json").read_text())["images"]
    assert one["class"] == "7"


def test_region_states_both_radii_and_what_they_rest_on(parts, tmp_path, capsys):
    out = tmp_path / "region.json"
    words = ["region", f"{DIGITS}:0", *parts, *NOISE, "--samples", "200", "--out", out]
    assert explain(*words, "--method", "rollout", "--gamma", "0.5") == 0
    shown = capsys.readouterr().out
    assert "faithful within an l2 radius of" in shown
    assert "copies" in shown
    found = json.loads(out.read_text())
    # Whatever the classifier: sigma * sqrt(2 gamma / order).
    prediction = found["prediction_radius_l2"]
    assert prediction["01"] == pytest.approx(0.25 * sqrt(0.5))
    assert prediction["pm1"] == pytest.approx(2 * prediction["01"])
    assert found["map"]["form"] == "threshold"
    assert found["map"]["m"] == 200
    assert found["map"]["eta"] == 0.05
    assert found["radius_l2"]["01"] == min(prediction["01"], found["map"]["radius_l2"]["01"])


def test_the_region_of_the_smoothed_class_ends_with_its_label(parts, tmp_path):
    out = tmp_path / "region.json"
    words = ["region", f"{DIGITS}:0", *parts, *NOISE, "--samples", "64", "--out", out]
    assert explain(*words, "--target", "smoothed", "--n", "64", "--n0", "16", "--beta", "0.25") == 0
    found = json.loads(out.read_text())
    assert found["radius_l2"]["01"] <= found["label"]["radius_l2"]["01"]
    assert "smoothed prediction" in found["map"]["explained"]


def test_plot_draws_tables_of_both_units_in_one_picture(parts, tmp_path, capsys):
    assert certify(parts, tmp_path / "ours", "--limit", "3") == 0
    theirs = tmp_path / "theirs.tsv"
    theirs.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:03.2\n")
    table = tmp_path / "ours" / "certificates.tsv"
    out = tmp_path / "curves.png"
    assert explain("plot", table, theirs, "--units", "01", "--out", out) == 0
    assert "1 chart" in capsys.readouterr().out
    assert out.stat().st_size > 5_000


def test_a_resnet_without_attention_is_smoothed_all_the_same(tmp_path, monkeypatch):
    """Predictions need no attention, and gradients give maps in cells."""
    from diffit.commands.explain import arguments
    from diffit.explain.classifier import as_classifier

    def logits(images):
        return images.flatten(1)[:, :10]

    bare = as_classifier(logits, shape=(1, 8, 8), class_names="0123456789")
    monkeypatch.setattr(arguments, "open_classifier", lambda path: bare)
    words = [f"{DIGITS}:0", "--classifier", "any", "--device", "cpu", *NOISE, "--samples", "8"]
    assert explain("predict", *words) == 0
    more = ["--method", "gradient-input", "--grid", "2", "--k", "1", "--out", tmp_path / "m.png"]
    assert explain("map", *words, *more) == 0
    assert json.loads((tmp_path / "m.json").read_text())["grid"] == [2, 2]


def test_the_weights_of_a_classifier_are_told_apart_also_inside_an_adapter(tmp_path):
    vit, other = (load_classifier(write_classifier(tmp_path / str(w), width=w)) for w in (8, 16))
    held = SimpleNamespace(model=vit)
    assert digest(vit) == digest(held)
    assert digest(vit) != digest(other)
    assert network_of(SimpleNamespace(model="no network")) is None


def test_the_region_of_a_method_that_looks_at_no_class_says_so(parts, tmp_path, capsys):
    words = ["region", f"{DIGITS}:3", *parts, *NOISE, "--samples", "8", "--method", "raw-attention"]
    assert explain(*words) == 0
    assert "the map depends on no class" in capsys.readouterr().out


def test_noisy_copies_are_made_where_the_classifier_is(tmp_path):
    vit = load_classifier(write_classifier(tmp_path / "vit"))
    opened = Opened(vit, None, torch.device("meta"))
    assert smooth(opened, Parts(classifier="vit"), 0.5).device == torch.device("meta")


def test_tables_of_one_name_in_folders_of_one_name_stay_apart():
    tables = [Path("a/run/c.tsv"), Path("b/run/c.tsv"), Path("b/other/c.tsv"), Path("b/d.tsv")]
    names = [table_name(path, tables) for path in tables]
    assert names == ["a/run/c.tsv", "b/run/c.tsv", "other/c", "d"]


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    shown = capsys.readouterr().out
    for verb in ("demo", "train-classifier", "predict", "certify", "map", "region", "evaluate"):
        assert verb in shown


def test_overlays_keep_the_image_where_nothing_is_relevant():
    from diffit.commands.explain.pictures import BLEND, overlay

    image = np.full((1, 2, 2), 200, np.uint8)
    seen = overlay(image, np.zeros((2, 2)))
    assert seen.shape == (2, 2, 3)
    assert np.abs(seen - (1 - BLEND) * 200).max() < 3
    assert (overlay(image, None) == 200).all()
