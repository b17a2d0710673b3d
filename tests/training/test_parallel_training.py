"""Several processes train as one does: gloo on the CPU, some thousand weights, real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from together import without_last

from diffit.checkpoint import checkpoint_folder, checkpoints, load, weights_in
from diffit.model import build_model
from diffit.sealed import read_state
from diffit.training.journal import read_metrics
from diffit.training.loop import train
from tiny import tiny_run

SCRIPT = Path(__file__).with_name("together.py")


def start(job: str, folder: Path, processes: int) -> list[subprocess.Popen[str]]:
    """The processes of a job, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": "1",  # as if each were on a machine of its own
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), job, str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes and what was said to stderr."""
    said = [process.communicate(timeout=240)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One process, then two, then three, then one; what each of them made."""
    folder = tmp_path_factory.mktemp("together")
    train(tiny_run(images=160, keep_last=9), folder / "one", quiet=True)
    train(tiny_run(images=48, keep_last=9), folder / "chain", quiet=True)
    (folder / "exits-two.json").write_text(json.dumps(ended(start("two", folder, 2))))
    (folder / "exits-three.json").write_text(json.dumps(ended(start("three", folder, 3))))
    train(tiny_run(images=160, keep_last=9), folder / "chain", quiet=True, resume=True)
    return folder


def told(folder: Path, job: str, processes: int) -> list:
    return [json.loads((folder / f"{job}-{rank}.json").read_text()) for rank in range(processes)]


def sums(run: Path, images: int = 160) -> dict:
    files = read_state(checkpoint_folder(run, images))["files"]
    return {name: note["blake2b"] for name, note in files.items() if name != "config.yaml"}


def lines(run: Path) -> list[dict]:
    """What the metrics say of the steps, without clocks and memory."""
    kept = ("images", "loss", "loss_by_level", "gradient_norm", "skipped", "lr")
    return [{key: line[key] for key in kept} for line in read_metrics(run / "metrics.jsonl")]


def distance(ours: dict, theirs: dict) -> float:
    return sum((ours[key] - theirs[key]).double().pow(2).sum().item() for key in ours) ** 0.5


def difference(run: Path, other: Path, images: int = 160) -> float:
    """How far apart two runs end, as a share of how far they went."""
    start = build_model(tiny_run().model).network.state_dict()
    ours, theirs = (
        load_file(checkpoint_folder(place, images) / "model.safetensors") for place in (run, other)
    )
    return distance(ours, theirs) / distance(theirs, start)


def test_two_processes_are_bitwise_one_that_computes_half_a_batch_at_a_time(folder):
    # Two numbers have one sum, whoever adds them up: gradients, moments, averages are the same.
    assert sums(folder / "ddp") == sums(folder / "one")
    assert lines(folder / "ddp") == lines(folder / "one")


def test_three_processes_take_the_steps_of_one_up_to_the_order_of_sums(folder):
    # 16 images are no multiple of 3: the parts are of 5, 5 and 6.
    assert 0 < difference(folder / "three", folder / "one") < 1e-3


@pytest.mark.parametrize("name", ["fsdp", "mixed"])
def test_sharded_weights_are_those_of_one_process(folder, name):
    assert difference(folder / name, folder / "one") < 1e-4
    for kind in ("ema-0.9", "optimizer"):
        ours, theirs = (
            load_file(checkpoint_folder(folder / run, 160) / f"{kind}.safetensors")
            for run in (name, "one")
        )
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.allclose(tensor, theirs[key], rtol=1e-5, atol=1e-7), key


def test_a_checkpoint_in_pieces_is_one_for_whoever_reads_it(folder, tmp_path):
    pieces = checkpoint_folder(folder / "fsdp", 128)
    assert set(read_state(pieces)["pieces"]) == {*load_names(folder / "one"), "optimizer"}
    assert "pieces" not in read_state(checkpoint_folder(folder / "fsdp", 160))
    # Sharded processes, who read their parts of it, go on as if nothing had been.
    assert sums(folder / "again") == sums(folder / "fsdp")
    # So does a process that is alone, but for the order of sums; and sampling reads it as it is.
    without_last(folder / "fsdp", tmp_path / "alone")
    train(tiny_run(images=160), tmp_path / "alone", quiet=True, resume=True)
    assert difference(tmp_path / "alone", folder / "one") < 1e-4
    read = load(pieces, weights="model").network.state_dict()
    whole = load(checkpoint_folder(folder / "one", 128), weights="model").network.state_dict()
    assert distance(read, whole) < 1e-4


def load_names(run: Path) -> list[str]:
    return weights_in(checkpoint_folder(run, 160))


def test_a_run_goes_from_one_to_two_to_three_processes_and_back(folder):
    assert [int(place.name) for place in checkpoints(folder / "chain")][-1] == 160
    assert 0 < difference(folder / "chain", folder / "one") < 1e-3


def test_weights_sharded_within_machines_alone_are_those_of_all(folder):
    train(tiny_run(images=32), folder / "short", quiet=True)
    assert difference(folder / "hybrid", folder / "short", 32) < 1e-6


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("whole", {"micro_batch": None}),
        ("clipped", {"clip": 1e-3}),
        ("checkpointed", {"activation_checkpointing": True}),
    ],
)
def test_other_ways_to_compute_a_step_agree_with_one_process(folder, tmp_path, name, settings):
    train(tiny_run(images=64, **settings), tmp_path / "run", quiet=True)
    assert difference(folder / name, tmp_path / "run", 64) < 1e-3


@pytest.mark.parametrize("name", ["poisoned", "poisoned-fsdp"])
def test_an_image_that_spoils_a_step_in_one_process_is_named_and_all_skip_it(folder, name):
    (record,) = map(json.loads, (folder / name / "nonfinite.jsonl").read_text().splitlines())
    assert (record["images"], record["numbers"]) == (48, [37, 41])
    assert record["losses"] == ["nan", "nan"]
    assert [line["skipped"] for line in lines(folder / name)] == [0, 1]
    for tensor in load_file(checkpoint_folder(folder / name, 64) / "model.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_what_processes_tell_each_other_all_of_them_hear(folder):
    for said in told(folder, "two", 2):
        assert said["gather"] == [{"é": 0}, {"é": 1}]
        assert said["sum"] == [2.0, 1.0]
        assert said["any"] == [True, False]
        assert said["numbers"] == [[0.0, 1.0], [0.0, 1.0, 2.0]]
        assert said["of_first"] == "from 0"


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("refused", "the second cannot"),
        ("batch", "train.batch 1 is fewer images than 2 processes"),
        ("odd", "train.batch 15 is no multiple of 2 processes"),
        ("taken", "holds a run already"),
        ("offload", "train.parallel.offload is for GPUs"),
        ("diverged", "not finite in 1 steps in a row"),
    ],
)
def test_a_refusal_ends_all_processes_and_only_the_first_says_why(folder, what, sentence):
    first, second = (said[what] for said in told(folder, "two", 2))
    assert sentence in first
    assert second == 2


def test_the_end_of_one_process_ends_the_others_with_one_line(folder):
    (first, said), (second, silent) = json.loads((folder / "exits-two.json").read_text())
    assert (first, second) == (0, -9), said
    assert (
        "one of the 2 processes has ended before the others" in (folder / "widow.txt").read_text()
    )
    assert silent == ""


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(folder):
    assert [code for code, _ in json.loads((folder / "exits-three.json").read_text())] == [0] * 3
    assert told(folder, "three", 3) == [["terminated", 64]] * 3
    assert checkpoint_folder(folder / "told", 64) in checkpoints(folder / "told")
