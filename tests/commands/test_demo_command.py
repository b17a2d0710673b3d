"""`diffit demo` in seconds: every part is made, named, and left alone when it is there already."""

import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from diffit.cli import main
from diffit.evaluation.passport import read_passport
from diffit.training.folder import METRICS
from diffit.training.journal import read_metrics

SECONDS = ["--minutes", "0.02", "--count", "100"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo of a second, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "demo-run"
    command = [sys.executable, "-m", "diffit", "demo", "--out", str(out), *SECONDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def named_files(text: str, out: Path) -> list[Path]:
    """The files that the last lines name."""
    return [Path(p) for p in re.findall(rf"^  \S.*?\s+({re.escape(str(out))}\S+)$", text, re.M)]


def test_every_picture_and_the_report_are_named_and_there(finished: tuple[Path, str]) -> None:
    out, text = finished
    files = named_files(text, out)
    assert {p.name for p in files} == {
        "report.html", "grid.png", "beside.png", "trajectory.png", "loss.png", "evaluation.json",
    }  # fmt: skip
    assert all(p.stat().st_size > 500 for p in files)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.titles, self.images, self.tag = "", [], 0, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        self.images += tag == "img"
        assert all((v or "").startswith("data:") for k, v in attrs if k in ("src", "href"))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tag == "h2" and data.strip():
            self.titles.append(data)
        self.tag = ""


def test_the_report_holds_everything_and_fetches_nothing(finished: tuple[Path, str]) -> None:
    out, _ = finished
    page = Reader()
    page.feed((out / "report.html").read_text())
    assert page.titles == [
        "Real and drawn", "Learning curve", "From noise to digit", "Attention over time",
        "Figures", "Do it again",
    ]  # fmt: skip
    assert page.images > 100
    passport = read_passport(out / "evaluation.json")
    for figure in passport.figures:
        assert figure.name in page.text
    assert {"fd", "kid", "precision", "recall", "accuracy"} <= {f.metric for f in passport.figures}
    assert "diffit sample run --out samples --count 100" in page.text
    assert passport.generation["sampling"]["guidance"] == 1.5


def test_the_same_command_again_repeats_nothing(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    files = [out / "evaluation.json", *out.glob("samples/images/*.png"), *out.glob("run/*.jsonl")]
    before = {p: p.stat().st_mtime_ns for p in files if p.suffix != ".jsonl"}
    images = read_metrics(out / "run" / METRICS)[-1]["images"]
    assert main(["demo", "--out", str(out), *SECONDS]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert read_metrics(out / "run" / METRICS)[-1]["images"] == images
    assert "done in" in capsys.readouterr().out


def test_ctrl_c_in_training_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "demo-run"
    command = [sys.executable, "-m", "diffit", "demo", "--out", str(out), "--minutes", "9"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(1200):
        if read_metrics(out / "run" / METRICS):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing is lost; repeat the command to continue" in errors
    assert "Traceback" not in errors
    assert list(out.glob("run/checkpoints/*/model.safetensors"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--minutes", "0"], "minutes is 0.0; it must be greater than 0"),
        (["--minutes", "soon"], "--minutes: 'soon' is no number"),
        (["--count", "5"], "count is 5; it must be greater than or equal to 100"),
        (["--out", "{file}"], "is a file; name a new folder"),
        (["--out", "{full}"], "holds other files; name a new folder"),
        (["--quick"], "unrecognized options: --quick"),
    ],
)
def test_each_mistake_is_one_line(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    places = {"file": tmp_path / "file", "full": tmp_path / "full"}
    assert main(["demo", *(o.format(**places) for o in options)]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.count("\n") == 1
