"""`diffit watch`: what it shows of runs that go on, are over, are damaged, or are none."""

import json
import os
import shutil

import pytest
from PIL import Image
from rich.console import Console

from diffit.cli import main
from diffit.commands.watch import Args, picture, sparkline
from diffit.commands.watch_page import names_of
from diffit.config import to_yaml
from diffit.errors import UsageError
from diffit.training.watching import look, read_lines
from tiny import tiny_run


def line(images, **figures):
    return {
        "images": images, "loss": 100 / images, "loss_by_level": [0.5, 0.25], "skipped": 0,
        "seconds": images / 10, "images_per_second": 10.0, **figures,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(tiny_run(images=400)))
    write(folder, [line(n) for n in range(20, 220, 20)])
    return folder


def write(folder, lines, end=""):
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "metrics.jsonl").write_text(text + end)


def text_of(views):
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(picture(views, console))
    return console.export_text()


def test_a_run_that_goes_on_shows_how_far_it_is(run):
    view = look(run)
    assert view.status == "training"
    assert view.left == pytest.approx(20)
    shown = text_of([view])
    assert "200 of 400 images (50 %), 20 s left" in shown
    assert "faces: training" in shown


def test_a_run_without_new_lines_is_called_silent_and_a_finished_one_done(run):
    os.utime(run / "metrics.jsonl", (0, 0))
    assert look(run).status.startswith("silent for")
    write(run, [line(400)])
    assert look(run).status == "done"


def test_a_run_without_lines_is_shown(run):
    (run / "metrics.jsonl").unlink()
    assert look(run).status == "no line yet"
    assert "0 of 400 images" in text_of([look(run)])


def test_damaged_lines_are_counted_and_the_one_being_written_is_not(run):
    path = run / "metrics.jsonl"
    bad = ["{torn", "[1]", '{"loss": 1}', '{"images": "x"}', '{"images": NaN}', "\0\0", "[" * 10**5]
    whole = [json.dumps(line(20)), *bad, json.dumps(line(40))]
    path.write_text("\n".join([*whole, '{"images": 60, "lo']))
    lines, damaged = read_lines(path)
    assert [one["images"] for one in lines] == [20, 40]
    assert damaged == len(bad)
    assert any("7 lines of metrics.jsonl" in words for words in look(run).warnings())


def test_figures_that_are_no_numbers_are_left_out(run):
    odd = [line(20, loss=None), line(40, loss=float("nan"), lr="x"), line(60, loss=10**400)]
    write(run, [*odd, line(80, loss=2.0, loss_by_level="x", memory=True)])
    view = look(run)
    assert view.points("loss") == [(80.0, 2.0)]
    assert view.points("memory") == view.levels() == []
    assert "2" in text_of([view])


def test_what_deserves_a_look_is_said(run):
    lines = [line(n, loss=1.0, data_wait=0.5) for n in range(20, 260, 20)]
    last = line(260, loss=9.0, skipped=2, attention_logit=80.0, data_wait=0.5)
    write(run, [*lines, last])
    (run / "spikes" / "000000000240").mkdir(parents=True)
    words = "\n".join(look(run).warnings())
    assert "2 steps were skipped" in words
    assert "the loss has jumped to 9, 9.0 times the usual" in words
    assert "wait for data 50 % of the time" in words
    assert "attention logits reach 80" in words
    assert "1 steps broke out" in words


def test_a_quiet_run_has_no_warnings(run):
    assert look(run).warnings() == []


def test_a_sparkline_goes_from_its_lowest_to_its_highest_block():
    assert sparkline([1, 10, 100], 3) == "▁▅█"
    assert sparkline([0, 1, 2, 3], 2) == "▁█"
    assert sparkline([5, 5, 5], 9) == "▄▄▄"
    assert sparkline([float("nan")], 9) == ""


def test_the_page_holds_curves_and_pictures_and_may_be_written_again(run, tmp_path, capsys):
    folder = run / "snapshots" / "000000000200"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "samples.png")
    (folder / "real.png").write_bytes(b"no picture")
    page = tmp_path / "watch.html"
    for _ in range(2):
        assert main(["watch", str(run), "--once", "--html", str(page)]) == 0
    text = page.read_text()
    assert "drawn at 200 images" in text
    assert text.count("<svg") == 3  # loss, images / s, loss by level
    assert "http" not in text.replace("http://www.w3.org", "")
    assert f"wrote {page}" in capsys.readouterr().out


def test_several_runs_are_drawn_beside_each_other(run, tmp_path):
    other = tmp_path / "more" / "faces"
    shutil.copytree(run, other)
    page = tmp_path / "both.html"
    assert main(["watch", str(run), str(other), "--once", "--html", str(page)]) == 0
    assert page.read_text().count('class="line s1"') == 3
    assert names_of([look(run), look(other)]) == [str(run), str(other)]


def test_names_in_the_page_are_escaped(run, tmp_path):
    odd = run.rename(tmp_path / "<b>&")
    page = tmp_path / "odd.html"
    assert main(["watch", str(odd), "--once", "--html", str(page)]) == 0
    assert "<b>&" not in page.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "needs the folder of a run"),
        ({"runs": ["nowhere"]}, "does not exist; name one that `diffit train` made"),
        ({"runs": ["."]}, "is no folder of a run"),
        ({"runs": ["faces"] * 7}, "too many to see; name at most 6"),
        ({"runs": ["faces"], "html": "x.txt"}, "must end in .html"),
        ({"runs": ["faces"], "html": "no/x.html"}, "cannot be written there"),
        ({"runs": ["faces"], "html": "mine.html"}, "no page of `diffit watch`"),
        ({"runs": ["faces"], "interval": 0}, "interval"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, capsys, change, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("<p>precious")
    options = [f"--{name}={value}" for name, value in change.items() if name != "runs"]
    assert main(["watch", *change.get("runs", []), "--once", *options]) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>precious"


def test_a_run_with_a_damaged_configuration_is_refused_in_a_sentence(run):
    (run / "config.yaml").write_text("model: [")
    with pytest.raises(Exception, match=r"config\.yaml"):
        look(run)
    assert Args(runs=(run,)).interval == 2.0


def test_a_page_is_not_written_for_what_is_no_run(tmp_path):
    with pytest.raises(UsageError):
        look(tmp_path)
