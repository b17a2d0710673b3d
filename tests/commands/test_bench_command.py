"""`diffit bench networks`, as a user runs it."""

import json

import pytest

from diffit.cli import main
from diffit.commands.bench_report import Entry
from diffit.training.held_out import read_held_out

TINY = ["--networks", "dit,uvit", "--parameters", "20000", "--images", "64", "--batch", "16"]
TINY += ["--points", "2", "--samples", "10", "--device", "cpu"]


def bench(*words):
    return main(["bench", "networks", *map(str, words)])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "out"
    assert bench("--out", folder, *TINY) == 0
    return folder


def test_it_writes_table_curves_report_and_results(out):
    results = json.loads((out / "results.json").read_text())["results"]
    assert set(results) == {"dit", "uvit"}
    for name, found in results.items():
        assert found["parameters"] == pytest.approx(20_000, rel=0.03)
        assert [n for n, _ in found["points"]] == [32, 64]
        assert found["figures"]["FD (digits-cnn)"] > 0
        assert len(read_held_out(out / "runs" / name)[-1]["loss_by_level"]) == 8
    table = (out / "table.md").read_text().splitlines()
    assert table[0].startswith("builtin:digits (1,498 images), 64 images each, batches of 16")
    assert {row.split(" | ")[0] for row in table[4:]} == {"| DiT", "| U-ViT"}
    assert (out / "curves.png").stat().st_size > 10_000
    report = (out / "report.html").read_text()
    assert "At equal time" in report
    assert "At equal images" in report
    assert report.count("data:image/png;base64") == 2


def test_repeating_it_trains_nothing_again(out, capsys):
    before = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("model.safetensors")}
    assert before
    assert bench("--out", out, *TINY) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("model.safetensors")}
    assert "held-out loss" in capsys.readouterr().out


def test_a_point_that_a_kill_swallowed_is_taken_again(out):
    path = out / "runs" / "dit" / "held_out.jsonl"
    whole = path.read_text()
    path.write_text(whole.splitlines(keepends=True)[0])
    assert bench("--out", out, *TINY) == 0
    first, last = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["images"], last["images"]) == (32, 64)
    expected = json.loads(whole.splitlines()[-1])["loss_by_level"]
    assert last["loss_by_level"] == pytest.approx(expected, rel=1e-6)


def test_other_settings_need_another_folder(out, capsys):
    assert bench("--out", out, *TINY, "--seed", "1") == 2
    assert "was begun with another --seed; repeat that command" in capsys.readouterr().err


def test_a_damaged_plan_is_named(tmp_path, capsys):
    (tmp_path / "plan.json").write_text("{")
    assert bench("--out", tmp_path, *TINY) == 2
    assert "plan.json is damaged; remove its folder and begin again" in capsys.readouterr().err


REFUSED = [
    (["--networks", "dit,unet"], "--networks 'unet' is unknown; did you mean"),
    (["--networks", ","], "--networks is empty; choose from diffit"),
    (["--data", "photos"], "photos has no held-out part that is known; name images"),
    (["--data", "photos", "--held-out", "x"], "--samples needs --features, such as inception"),
    (["--held-out", "builtin:patches-test"], "has other sizes or classes than builtin:digits"),
    (["--parameters", "1000", "--networks", "mdt"], "MDTv2 cannot have 1,000 parameters"),
    (["--minutes", "0"], "minutes is 0"),
    (["--out", "."], "--out . holds other files; name a new folder"),
    (["--out", "file"], "--out file is a file; name a new folder"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_mistakes_end_in_one_line(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    where = [] if "--out" in options else ["--out", "new"]
    assert bench(*where, *options, "--device", "cpu") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_losses_between_points_lie_on_a_line_of_the_logarithm():
    entry = Entry("dit", "DiT", 1, 1, 1.0, 400, ((100, 4.0), (400, 2.0)), (), {})
    assert entry.loss == 2.0
    assert entry.loss_at(200) == pytest.approx(3.0)
    assert entry.loss_at(50) != entry.loss_at(50)  # nothing is known before the first point
