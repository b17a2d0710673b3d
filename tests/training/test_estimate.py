"""The estimate of a run against sums by hand, and against the memory of real steps."""

import runpy
from pathlib import Path

import pytest
import torch

from diffit.cli import main
from diffit.model import build_model
from diffit.training.estimate import Memory, Sizes, estimate_disk, estimate_memory, probe
from tiny import tiny_run

CPU = torch.device("cpu")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "dry_run.py"
MB = 10**6


def test_sizes_are_added_up_as_tensors_come_and_go():
    with Sizes() as sizes:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # takes nothing
        c = torch.zeros(500, dtype=torch.float64)
        del a, c
        assert sizes.now == 4000
        del b
    assert (sizes.now, sizes.peak) == (0, 8000)


def test_weights_gradients_moments_and_averages_are_those_of_the_network():
    config = tiny_run()  # with two power-function averages, one by decay, one by half-life
    network = build_model(config.model).network
    trained = sum(p.nbytes for p in network.parameters())
    all_of_it = sum(t.nbytes for t in network.state_dict().values())
    memory = estimate_memory(config, CPU, images=16)
    assert memory.gradients == trained
    assert trained <= memory.weights <= all_of_it + 20_000
    assert 2 * trained < memory.moments < 2 * trained + 8 * len(list(network.parameters()))
    assert 4 * trained <= memory.averages <= 4 * all_of_it


def test_activations_grow_with_the_images_that_are_computed_at_once_alone():
    few = estimate_memory(tiny_run(batch=64, micro_batch=8), CPU, images=64)
    more = estimate_memory(tiny_run(batch=64, micro_batch=32), CPU, images=64)
    assert 2.5 < more.activations / few.activations < 4.1
    assert more.weights == few.weights


def test_activations_that_are_computed_again_take_less():
    kept = estimate_memory(tiny_run(micro_batch=None), CPU, images=32)
    again = estimate_memory(
        tiny_run(micro_batch=None, activation_checkpointing=True), CPU, images=32
    )
    assert again.activations < 0.7 * kept.activations


def test_sharded_processes_keep_a_part_each_and_replicated_ones_everything():
    alone = Memory(100, 100, 200, 300, activations=50, block=20)
    assert alone.shared("ddp", 1) == alone
    assert alone.shared("ddp", 4).total == 750 + 100
    assert alone.shared("fsdp", 4).total == 25 + 25 + 50 + 75 + 50 + 2 * 20


def test_room_for_checkpoints_counts_those_that_stay_for_ever_and_the_one_being_written():
    memory = Memory(100, 100, 200, 300, 0)
    config = tiny_run(images=1000, checkpoint_every=100, keep_last=2, keep_every=500,
                      ema={"constant": [0.9]})  # fmt: skip
    disk = estimate_disk(config, memory)
    assert disk.checkpoint == 600
    assert disk.most == 600 * (2 + 2 + 1)


def test_a_probe_measures_a_real_step():
    pace = probe(tiny_run(), CPU, images=8, steps=2)
    assert pace.steps == 2
    assert pace.images_per_second > 1
    assert 0 < pace.utilisation < 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for its peaks")
@pytest.mark.parametrize("preset", ["diffit-digits", "tiny-uvit"])
def test_the_prediction_is_near_the_measured_peak(preset):
    benchmark = runpy.run_path(str(BENCHMARK))
    found = benchmark["compare"](preset, {"batch": 256})
    assert found["measured"] > 30 * MB
    # Buffers of libraries weigh more in steps this small than in those of the benchmark.
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.3)


def test_the_command_says_everything_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny-dit", "--dry-run", "--processes", "2", "--train.batch", "8"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["parameters"].strip() == "53,048"
    assert "on each of 2 devices" in lines["memory, fsdp"]
    assert "images/s on one device" in lines["speed"]
    assert "a checkpoint" in lines["disk"]
    assert list(tmp_path.iterdir()) == []


def test_the_probe_can_be_left_out_and_is_where_memory_lacks(monkeypatch, capsys):
    assert main(["train", "tiny-dit", "--dry-run", "--no-probe"]) == 0
    assert "not measured" in capsys.readouterr().out
    monkeypatch.setattr("diffit.commands.train_estimate.free_memory", lambda _: 1000)
    assert main(["train", "tiny-dit", "--dry-run"]) == 0
    assert "are needed here, 1 kB are free" in capsys.readouterr().out


def test_more_processes_than_images_are_refused(capsys):
    words = ["--dry-run", "--processes", "9", "--train.batch", "8"]
    assert main(["train", "tiny-dit", *words]) == 2
    assert "fewer images than --processes 9" in capsys.readouterr().err
