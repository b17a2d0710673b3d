"""The journal: means by noise level, lines that are never repeated, writers, the console."""

import json
import sys
import types

import pytest

from diffit.errors import ConfigError
from diffit.training.console import ConsoleLine, duration
from diffit.training.journal import LEVELS, Journal, Meter, cut, read_metrics
from diffit.training.writers import open_writers


def journal(path, *, start=0, writers=(), quiet=True, total=100):
    console = ConsoleLine(total=total, quiet=quiet)
    return Journal(path, start=start, seconds=0.0, console=console, writers=writers)


def test_the_meter_splits_the_mean_by_noise_level():
    meter = Meter()
    meter.add([1.0, 2.0], [0.01, 0.02], gradient_norm=3.0)
    meter.add([6.0], [0.999999], gradient_norm=5.0)
    meter.skip()
    line = meter.read()
    assert line["loss"] == 3.0
    assert line["loss_by_level"] == [1.5, *[None] * (LEVELS - 2), 6.0]
    assert line["gradient_norm"] == 4.0
    assert line["skipped"] == 1
    assert meter.read()["loss"] is None


def test_the_meter_continues_from_its_state():
    meter = Meter()
    meter.add([0.1, 0.2], [0.3, 0.4], gradient_norm=0.1)
    again = Meter(json.loads(json.dumps(meter.state)))
    for one in (meter, again):
        one.add([0.7], [0.5], gradient_norm=0.7)
    assert again.read() == meter.read()


def test_lines_carry_the_speed_since_the_line_before(tmp_path):
    with journal(tmp_path / "m.jsonl") as notes:
        notes.write(10, 2.0, {"loss": 1.0})
        notes.write(40, 4.0, {"loss": 0.5})
    first, second = read_metrics(tmp_path / "m.jsonl")
    assert first == {"images": 10, "loss": 1.0, "images_per_second": 5.0, "seconds": 2.0}
    assert second["images_per_second"] == 15.0


def test_a_resumed_journal_repeats_no_line(tmp_path):
    path = tmp_path / "m.jsonl"
    with journal(path) as notes:
        for images in (10, 20, 30):
            notes.write(images, images / 10, {"loss": images})
    with path.open("a") as file:
        file.write('{"images": 40, "lo')  # torn by a kill
    with journal(path, start=20) as notes:
        notes.write(30, 3.0, {"loss": 99})
    assert [(line["images"], line["loss"]) for line in read_metrics(path)] == [
        (10, 10), (20, 20), (30, 99),
    ]  # fmt: skip


def test_cutting_a_journal_that_does_not_exist_makes_none(tmp_path):
    cut(tmp_path / "m.jsonl", 5)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_numbers(tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writers = open_writers(tmp_path, start=0, tensorboard=True, wandb="")
    with journal(tmp_path / "m.jsonl", writers=writers) as notes:
        notes.write(64, 1.0, {"loss": 0.25, "loss_by_level": [0.5, None]})
    read = event.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(64, 0.25)]
    assert [e.value for e in read.Scalars("loss_by_level/0")] == [0.5]
    assert "loss_by_level/1" not in read.Tags()["scalars"]


def test_wandb_that_is_missing_is_named_with_its_extra(tmp_path):
    with pytest.raises(ConfigError, match=r"pip install 'diffit-torch\[wandb\]'"):
        open_writers(tmp_path, start=0, tensorboard=False, wandb="faces")


class FakeRun:
    def __init__(self, **options):
        self.options, self.logged, self.finished = options, [], False

    def log(self, numbers, step):
        self.logged.append((step, numbers["loss"]))

    def finish(self):
        self.finished = True


def test_wandb_gets_the_numbers_under_the_name_of_the_run(monkeypatch, tmp_path):
    runs = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace()
    fake.init = lambda **options: runs.append(FakeRun(**options)) or runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writers = open_writers(tmp_path / "run7", start=0, tensorboard=False, wandb="faces")
    with journal(tmp_path / "m.jsonl", writers=writers) as notes:
        notes.write(64, 1.0, {"loss": 0.25})
    (run,) = runs
    assert (run.options["project"], run.options["id"]) == ("faces", "run7")
    assert run.logged == [(64, 0.25)]
    assert run.finished


def test_the_console_says_how_fast_and_how_long(tmp_path, capsys):
    with journal(tmp_path / "m.jsonl", quiet=False, total=1000) as notes:
        notes.write(400, 4.0, {"loss": 0.25})
        notes.say("a [sentence] of its own")
    out = capsys.readouterr().out
    assert "400 of 1,000 images  loss 0.2500  100 images/s  6 s left" in out
    assert "a [sentence] of its own" in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"),
        (273_600, "3 d 04 h"), (-3, "0 s"),
    ],
)  # fmt: skip
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
