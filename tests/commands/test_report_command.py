"""`diffit report compare` as a user types it."""

import json

import pytest

from diffit.cli import main


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    place = tmp_path_factory.mktemp("results")
    for name, draws in (("a", "20"), ("b", "30")):
        assert main([
            "evaluate", "builtin:digits-test", "--reference", "builtin:digits",
            "--features", "digits-cnn", "--draws", draws, "--out", str(place / f"{name}.json"),
        ]) == 0  # fmt: skip
    changed = json.loads((place / "b.json").read_text())
    changed["samples"]["count"] = 100
    (place / "c.json").write_text(json.dumps(changed))
    return place


def test_two_results_are_explained(results, capsys):
    assert main(["report", "compare", str(results / "a.json"), str(results / "b.json")]) == 0
    printed = capsys.readouterr().out
    assert "FD (digits-cnn)" in printed
    assert "The measurements agree." in printed


def test_the_page_says_the_same(results, tmp_path, capsys):
    out = tmp_path / "why.html"
    args = [str(results / "a.json"), str(results / "c.json"), "--out", str(out)]
    assert main(["report", "compare", *args]) == 0
    assert "biased upward" in out.read_text()
    assert f"wrote {out}" in capsys.readouterr().out


@pytest.mark.parametrize(("args", "message"), [
    (["a.json", "absent.json"], "absent.json does not exist"),
    (["a.json", "b.json", "--out", "a.json"], "a.json exists already"),
    (["a.json", "b.json", "--out", "x.txt"], "must end in .html"),
    (["a.json", "b.json", "--out", "no/x.html"], "cannot be written there"),
    (["a.json", "broken.json"], "is no valid JSON"),
    (["a.json", "old.json"], "is no passport of format diffit-passport-2"),
    (["a.json"], "must be given"),
])  # fmt: skip
def test_mistakes_get_one_sentence(results, args, message, capsys, monkeypatch):
    monkeypatch.chdir(results)
    (results / "broken.json").write_text("{")
    (results / "old.json").write_text('{"format": "diffit-passport-1"}')
    assert main(["report", "compare", *args]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_without_a_verb_the_verbs_are_named(capsys):
    assert main(["report"]) == 2
    assert "needs one of: compare" in capsys.readouterr().err
