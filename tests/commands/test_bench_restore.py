import json
from pathlib import Path

import pytest

from diffit.cli import main

MODEL = Path(__file__).parent.parent / "fixtures" / "smoothed_digits" / "denoiser"


def bench(out: Path, *options: str) -> int:
    fixed = ["--model", str(MODEL), "--data", "builtin:digits-test", "--count", "6"]
    return main(["bench", "restore", "--out", str(out), *fixed, "--batch", "4", *options])


def test_every_fitting_method_stands_beside_the_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--tasks", "inpaint-box,jpeg-10", "--methods", "ddnm,ddrm", "--steps", "8"]
    assert bench(out, *options) == 0
    said = capsys.readouterr()
    assert "left out: jpeg-10 by ddnm: ddnm needs a linear operator" in said.err
    results = json.loads((out / "results.json").read_text())
    rows = {(row["task"], row["method"]): row for row in results["rows"]}
    assert list(rows) == [
        ("inpaint-box", "baseline"),
        ("inpaint-box", "ddnm"),
        ("inpaint-box", "ddrm"),
        ("jpeg-10", "baseline"),
    ]
    naive = rows["inpaint-box", "baseline"]["metrics"]["PSNR"]
    for method in ("ddnm", "ddrm"):
        row = rows["inpaint-box", method]
        assert row["metrics"]["PSNR"] > naive + 1
        assert row["count"] == 6
        assert row["nfe"] == 8
        assert row["consistency"] < 0.01  # of 8-bit pixels
    assert "| inpaint-box | ddnm |" in (out / "table.md").read_text()
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 2 + 3 + 2 + 1
    assert "http" not in page.replace("http-equiv", "")


def test_a_second_run_does_only_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert bench(out, "--tasks", "sr2", "--methods", "ddnm", "--steps", "4") == 0
    kept = {p: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    damaged = sorted(kept)[-1]
    damaged.write_text("{")
    assert bench(out, "--tasks", "sr2,sr4", "--methods", "ddnm,ddrm", "--steps", "4") == 0
    for path, time in kept.items():
        assert (path.stat().st_mtime_ns == time) == (path != damaged)
    capsys.readouterr()
    assert bench(out, "--tasks", "sr2", "--methods", "ddnm", "--steps", "5") == 2
    assert "was begun with another steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tasks", "sr22"], "there is no task 'sr22'"),
        (["--methods", "dps,ddnn"], "there is no method 'ddnn'; did you mean 'ddnm'?"),
        (["--tasks", "jpeg-10", "--methods", "ddnm"], "none of these methods fits"),
        (["--tasks", ","], "empty list of names"),
        (["--count", "100000"], "--count is 100000, but"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path / "out", *options) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
