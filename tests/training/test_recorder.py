"""Steps that break out: they are found, written down, computed again, skipped, gone back from."""

import json
import math
import shutil

import pytest
import torch

from diffit.checkpoint import checkpoint_folder
from diffit.cli import main
from diffit.errors import CheckpointError, DiffitError
from diffit.sealed import read_state
from diffit.training import loop, recorder
from diffit.training.journal import CLOCKS, read_metrics
from diffit.training.loop import train
from diffit.training.recent import FLOOR, LEAST, NORMAL, Recent, Step
from diffit.training.replay import replay
from diffit.training.step import Objective
from tiny import tiny_run

AT = 36 * 4
"""Images before the batch that breaks out."""


def usual(losses):
    return Recent([i, loss, 1.0] for i, loss in enumerate(losses))


def test_a_step_is_judged_by_robust_deviations_of_logarithms():
    recent = usual([math.exp(x) for x in [-0.2, 0.0, 0.2] * 20])
    edge = math.exp(10 * (NORMAL * 0.2 + FLOOR))
    assert recent.excess(Step(0, edge * 0.999, 1.0), 10) == ""
    assert recent.excess(Step(0, edge * 1.001, 1.0), 10).startswith("loss")
    assert "gradient norm" in recent.excess(Step(0, 1.0, 1e6), 10)


def test_nothing_breaks_out_of_few_steps_or_of_losses_that_may_be_negative():
    assert usual([1.0] * (LEAST - 1)).excess(Step(0, 1e9, 1.0), 10) == ""
    assert usual([-1.0] * LEAST).excess(Step(0, 1e9, 1.0), 10) == ""


def test_what_is_not_finite_always_breaks_out():
    assert "nan" in Recent().excess(Step(0, math.nan, 1.0), 10)


def test_a_new_level_becomes_usual():
    recent, step = usual([1.0] * 128), Step(0, 100.0, 1.0)
    found = []
    for _ in range(100):
        found.append(bool(recent.excess(step, 10)))
        recent.add(step)
    assert found[0]
    assert not found[-1]


@pytest.fixture
def outbreak(monkeypatch):
    """The losses of one batch of every run are a thousand times what they are."""
    losses = Objective.losses

    def larger(self, inputs):
        found = losses(self, inputs)
        return found * torch.where(inputs.number // 4 == AT // 4, 1e3, 1.0)

    monkeypatch.setattr(Objective, "losses", larger)


def config_of(**changes):
    settings = {
        "images": 180, "batch": 4, "micro_batch": None, "log_every": 20, "checkpoint_every": 80,
        "ema": {"constant": [0.9]},
    }  # fmt: skip
    return tiny_run(**(settings | changes))


def metrics(run):
    return [
        {key: value for key, value in line.items() if key not in CLOCKS}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def weights(run, images=180):
    files = read_state(checkpoint_folder(run, images))["files"]
    return files["model.safetensors"]["blake2b"], files["optimizer.safetensors"]["blake2b"]


def test_a_step_that_breaks_out_is_written_down_and_computed_again(outbreak, tmp_path, capsys):
    run = tmp_path / "run"
    train(config_of(), run, quiet=True)
    (folder,) = (run / "spikes").iterdir()
    assert folder.name == f"{AT:012d}"
    shutil.copytree(folder, tmp_path / "sent")  # needs neither the run nor its data
    found = replay(tmp_path / "sent")
    assert [image.number for image in found.images] == [AT, AT + 1, AT + 2, AT + 3]
    for image in found.images:
        assert image.loss == pytest.approx(image.recorded, rel=1e-6)
    assert found.norm == pytest.approx(found.recorded, rel=1e-6)
    assert main(["train", "--replay", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"broke out at {AT:,} images: loss" in printed
    assert "in the run" in printed


def test_a_noted_step_is_taken_and_a_skipped_one_is_not(outbreak, tmp_path):
    train(config_of(), tmp_path / "noted", quiet=True)
    train(config_of(on_spike="skip"), tmp_path / "skipped", quiet=True)
    assert sum(line["skipped"] for line in metrics(tmp_path / "noted")) == 0
    assert sum(line["skipped"] for line in metrics(tmp_path / "skipped")) == 1
    assert weights(tmp_path / "noted") != weights(tmp_path / "skipped")


def test_a_rewound_run_ends_as_if_the_step_had_been_skipped(outbreak, tmp_path, capsys):
    run = tmp_path / "rewound"
    train(config_of(on_spike="rewind"), run)
    assert "goes back to 80 images" in capsys.readouterr().out
    train(config_of(on_spike="skip"), tmp_path / "skipped", quiet=True)
    assert weights(run) == weights(tmp_path / "skipped")
    assert read_state(checkpoint_folder(run, 180))["passed"] == [AT]
    images = [line["images"] for line in metrics(run)]
    assert images == sorted(set(images))  # no line is there twice


def test_a_rewound_run_that_is_killed_afterwards_ends_the_same(outbreak, tmp_path, monkeypatch):
    config = config_of(on_spike="rewind")
    train(config, tmp_path / "straight", quiet=True)

    def stop(run, *args, **options):
        if run.state.images == AT + 8:
            raise KeyboardInterrupt
        return step(run, *args, **options)

    step = loop.take_step
    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed", quiet=True)
    train(config, tmp_path / "killed", resume=True, quiet=True)
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "straight")


def test_a_run_without_a_checkpoint_goes_back_to_its_beginning(outbreak, tmp_path):
    config = config_of(on_spike="rewind", checkpoint_every=10_000)
    train(config, tmp_path / "run", quiet=True)
    train(config_of(on_spike="skip"), tmp_path / "skipped", quiet=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "skipped")


def test_a_run_that_goes_back_again_and_again_gives_up(outbreak, tmp_path):
    config = config_of(on_spike="rewind", max_bad_steps=1)
    with pytest.raises(DiffitError, match="1 batches have broken out since the checkpoint at 80"):
        train(config, tmp_path / "run", quiet=True)


def test_only_some_steps_are_written_down(outbreak, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recorder, "MOST", 0)
    train(config_of(), tmp_path / "run")
    assert "and this is not written down" in capsys.readouterr().out
    assert not (tmp_path / "run" / "spikes").exists()


def test_what_is_no_recorded_step_is_refused(outbreak, tmp_path, capsys):
    assert main(["train", "--replay", str(tmp_path)]) == 2
    assert "name a folder inside RUN/spikes" in capsys.readouterr().err
    train(config_of(), tmp_path / "run", quiet=True)
    (folder,) = (tmp_path / "run" / "spikes").iterdir()
    file = folder / "inputs.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        replay(folder)
    content = json.loads((folder / "state.json").read_text())
    assert content["recent"][-1][0] == AT
