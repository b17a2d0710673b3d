"""Training runs: they learn, they repeat themselves bit for bit, they survive what ends them."""

import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from diffit import sealed
from diffit.checkpoint import checkpoint_folder, checkpoints, load, newest
from diffit.config import parse, read_yaml
from diffit.data import open_dataset
from diffit.data.loader import Loader
from diffit.errors import ConfigError, DiffitError, UsageError
from diffit.model import build_model
from diffit.sealed import read_state
from diffit.training import loop, room, trouble
from diffit.training.folder import locked
from diffit.training.journal import CLOCKS, read_metrics
from diffit.training.loop import train
from diffit.training.prepare import complete, open_training_data
from diffit.training.settings import RunConfig
from tiny import tiny_run


def go(config, run, **options):
    return train(config, run, quiet=True, **options)


def sums(run, images):
    """File name -> checksum of every set of tensors of a checkpoint."""
    files = read_state(checkpoint_folder(run, images))["files"]
    return {name: note["blake2b"] for name, note in files.items() if name != "config.yaml"}


def lines(run):
    """The metrics without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key not in CLOCKS}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def weights(run, images, name="model"):
    return load_file(checkpoint_folder(run, images) / f"{name}.safetensors")


class CrashError(Exception):
    pass


def at(images, act):
    """A hook that acts when a snapshot of this many images is due."""

    def on_snapshot(snapshot):
        if snapshot.images == images:
            act()

    return on_snapshot


def crash():
    raise CrashError


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 160 images without any interruption."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    go(tiny_run(images=160, keep_last=9), run)
    return run


def test_the_loss_falls(tmp_path):
    config = tiny_run(
        images=2048, batch=32, micro_batch=None, lr=5e-3, log_every=512, ema={},
        network={"dropout": 0.0}, data={"augment": 0.0},
    )  # fmt: skip
    go(config, tmp_path / "run")
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_is_a_function_of_its_configuration(straight, tmp_path):
    saved = parse(RunConfig, read_yaml(straight / "config.yaml"), source="saved")
    go(saved, tmp_path / "again")
    assert sums(tmp_path / "again", 160) == sums(straight, 160)
    assert lines(tmp_path / "again") == lines(straight)


@pytest.mark.parametrize("moment", [16, 80, 96, 144])
def test_a_crashed_run_resumes_bit_for_bit(straight, tmp_path, moment):
    config = tiny_run(images=160, snapshot_every=16)
    with pytest.raises(CrashError):
        go(config, tmp_path / "run", on_snapshot=at(moment, crash))
    go(config, tmp_path / "run", resume=True)
    assert sums(tmp_path / "run", 160) == sums(straight, 160)
    assert lines(tmp_path / "run") == lines(straight)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_ends_a_run_after_its_step_and_it_resumes_bit_for_bit(
    straight, tmp_path, number, reason
):
    config = tiny_run(images=160, snapshot_every=16)
    hook = at(80, lambda: interrupt(number))
    before = signal.getsignal(number)
    outcome = go(config, tmp_path / "run", on_snapshot=hook)
    assert signal.getsignal(number) is before
    assert (outcome.reason, outcome.images) == (reason, 96)
    assert checkpoint_folder(tmp_path / "run", 96) in checkpoints(tmp_path / "run")
    outcome = go(config, tmp_path / "run", resume=True)
    assert (outcome.reason, outcome.images) == ("done", 160)
    assert sums(tmp_path / "run", 160) == sums(straight, 160)
    assert lines(tmp_path / "run") == lines(straight)


def test_a_second_signal_ends_a_run_at_once(tmp_path):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        go(tiny_run(snapshot_every=16), tmp_path / "run", on_snapshot=at(32, twice))
    go(tiny_run(), tmp_path / "run", resume=True)


def test_a_longer_run_is_a_run_resumed(straight, tmp_path):
    go(tiny_run(images=64), tmp_path / "run")
    go(tiny_run(images=160), tmp_path / "run", resume=True)
    assert sums(tmp_path / "run", 160) == sums(straight, 160)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    go(tiny_run(images=64), tmp_path / "run")
    before = sums(tmp_path / "run", 64)
    outcome = go(tiny_run(images=64), tmp_path / "run", resume=True)
    assert (outcome.reason, outcome.images) == ("done", 64)
    assert sums(tmp_path / "run", 64) == before


def test_a_damaged_newest_checkpoint_is_set_aside(straight, tmp_path, capsys):
    run = tmp_path / "run"
    go(tiny_run(images=128), run)
    file = checkpoint_folder(run, 128) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    shutil.copytree(file.parent, file.parent.with_name("000000000128.damaged"))  # an earlier one
    train(tiny_run(images=160), run, resume=True)
    assert "000000000128 is damaged: optimizer.safetensors has" in capsys.readouterr().out
    assert sums(run, 160) == sums(straight, 160)
    assert newest(run).damaged == {}


def test_a_run_without_an_intact_checkpoint_is_refused(tmp_path):
    go(tiny_run(images=64), tmp_path / "run")
    for folder in checkpoints(tmp_path / "run"):
        (folder / "model.safetensors").unlink()
    with pytest.raises(DiffitError, match=r"no checkpoint of .* is intact"):
        go(tiny_run(images=64), tmp_path / "run", resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_over(straight, tmp_path):
    with pytest.raises(CrashError):
        go(tiny_run(images=160, snapshot_every=16), tmp_path / "run", on_snapshot=at(16, crash))
    assert checkpoints(tmp_path / "run") == []
    go(tiny_run(images=160), tmp_path / "run", resume=True)
    assert sums(tmp_path / "run", 160) == sums(straight, 160)


def difference(run, other, images=160):
    """How far apart two runs end, as a share of how far they went."""
    start = build_model(tiny_run().model).network.state_dict()
    ours, theirs = weights(run, images), weights(other, images)

    def distance(a, b):
        return sum((a[key] - b[key]).double().pow(2).sum().item() for key in a) ** 0.5

    return distance(ours, theirs) / distance(theirs, start)


@pytest.mark.parametrize("micro_batch", [None, 5, 1])
def test_other_micro_batches_give_the_same_steps_up_to_rounding(straight, tmp_path, micro_batch):
    go(tiny_run(images=160, micro_batch=micro_batch), tmp_path / "run")
    assert 0 < difference(tmp_path / "run", straight) < 1e-3


def test_activation_checkpointing_changes_nothing_but_memory(straight, tmp_path):
    go(tiny_run(images=160, activation_checkpointing=True), tmp_path / "run")
    assert difference(tmp_path / "run", straight) < 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_and_resumes(tmp_path, precision):
    config = tiny_run(images=160, precision=precision, snapshot_every=16)
    go(config, tmp_path / "straight")
    with pytest.raises(CrashError):
        go(config, tmp_path / "run", on_snapshot=at(96, crash))
    go(config, tmp_path / "run", resume=True)
    assert sums(tmp_path / "run", 160) == sums(tmp_path / "straight", 160)
    assert all(line["loss"] < 3 for line in lines(tmp_path / "run"))
    scale = read_state(checkpoint_folder(tmp_path / "run", 160))["scale"]
    assert (scale is not None) == (precision == "fp16")


@pytest.mark.parametrize(
    "network",
    [
        {"name": "latent-diffit", "size": 8, "channels": 1, "classes": 10, "patch": 4, "depth": 1,
         "width": 16, "heads": 2, "learned_variance": True},
        {"name": "dit", "size": 8, "channels": 1, "classes": 10, "patch": 4, "depth": 1,
         "width": 16, "heads": 2, "learned_variance": True},
    ],
)  # fmt: skip
def test_the_other_networks_train_with_their_bound(tmp_path, network):
    settings = {
        "model": {"network": network, "formulation": {"name": "ddpm"}},
        "data": {"path": "builtin:digits"},
        "train": {"images": 64, "batch": 16, "log_every": 16, "tensorboard": False},
    }
    go(parse(RunConfig, settings, source="test"), tmp_path / "run")
    assert load(tmp_path / "run").config.network.name == network["name"]


@pytest.mark.parametrize("weight", ["min-snr", "p2"])
def test_loss_weights_change_the_result(straight, tmp_path, weight):
    go(tiny_run(images=64, loss_weight=weight), tmp_path / "run")
    assert sums(tmp_path / "run", 64) != sums(straight, 64)


def test_a_time_limit_ends_a_run_and_is_remembered(tmp_path):
    config = tiny_run(images=10**9, minutes=1e-4)
    outcome = go(config, tmp_path / "run")
    assert outcome.reason == "time"
    assert outcome.images < 10**6
    again = go(config, tmp_path / "run", resume=True)
    assert again == outcome


# What goes wrong


def test_pictures_that_cannot_be_drawn_do_not_end_a_run(tmp_path, capsys):
    def fail():
        raise ValueError("values that are not finite")

    outcome = train(tiny_run(snapshot_every=32), tmp_path / "run", on_snapshot=at(64, fail))
    assert outcome.images == 128
    assert "no pictures at 64 images: values that are not finite" in capsys.readouterr().out


def test_a_second_process_in_the_same_run_is_refused(tmp_path):
    go(tiny_run(images=64), tmp_path / "run")
    with (
        locked(tmp_path / "run"),
        pytest.raises(UsageError, match="another process is at work in"),
    ):
        go(tiny_run(images=128), tmp_path / "run", resume=True)


def test_a_run_that_ended_before_its_first_step_may_begin_again(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "take_steps", lambda *_: crash())
    for _ in range(2):
        with pytest.raises(CrashError):
            go(tiny_run(images=32), tmp_path / "run")
    monkeypatch.undo()
    assert go(tiny_run(images=32), tmp_path / "run").reason == "done"


def test_the_first_sentence_says_what_is_trained(tmp_path, capsys):
    train(tiny_run(images=32), tmp_path / "run")
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("diffit of ")
    assert "builtin:digits of 1,498 images, cpu" in first


def test_a_folder_that_is_taken_is_refused(tmp_path):
    go(tiny_run(images=16), tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds a run already; .*--resume"):
        go(tiny_run(), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(UsageError, match="exists and is no run"):
        go(tiny_run(), tmp_path / "other")
    with pytest.raises(UsageError, match="is no folder of a run"):
        go(tiny_run(), tmp_path / "other", resume=True)


def poison(monkeypatch, *numbers):
    """Make these images of a run something that is not a number."""
    draw = loop.draw_inputs

    def poisoned(batch, model, **options):
        inputs = draw(batch, model, **options)
        for place, number in enumerate(inputs.number.tolist()):
            if not numbers or number in numbers:
                inputs.clean[place, 0, 0, 0] = float("nan")
        return inputs

    monkeypatch.setattr(loop, "draw_inputs", poisoned)


def test_an_image_that_spoils_a_step_is_named_and_the_step_skipped(monkeypatch, tmp_path, capsys):
    poison(monkeypatch, 37, 41)
    config = tiny_run()
    outcome = train(config, tmp_path / "run")
    assert outcome.images == 128
    (record,) = map(json.loads, (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines())
    loader = Loader(open_dataset("builtin:digits"), batch=16, seed=0)
    assert record["numbers"] == [37, 41]
    assert record["indices"] == [loader.index(37), loader.index(41)]
    assert record["losses"] == ["nan", "nan"]
    assert len(record["sigmas"]) == 2
    assert f"images {record['indices']} of the data" in capsys.readouterr().out
    assert [line["skipped"] for line in lines(tmp_path / "run")] == [0, 1, 0, 0]
    for tensor in weights(tmp_path / "run", 128).values():
        assert torch.isfinite(tensor).all()


def test_a_run_gives_up_if_trouble_persists(monkeypatch, tmp_path):
    poison(monkeypatch)
    with pytest.raises(trouble.DivergedError, match="not finite in 3 steps in a row, at 48 images"):
        go(tiny_run(max_bad_steps=3), tmp_path / "run")


def test_a_full_disk_is_one_sentence_and_the_run_resumes(straight, monkeypatch, tmp_path):
    write, written = sealed.write_tensors, []

    def full(file, tensors):
        written.append(file)
        if len(written) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, tensors)

    monkeypatch.setattr(sealed, "write_tensors", full)
    with pytest.raises(UsageError, match="No space left on device; make room and continue with"):
        go(tiny_run(images=160), tmp_path / "run")
    monkeypatch.undo()
    assert newest(tmp_path / "run").folder == checkpoint_folder(tmp_path / "run", 64)
    go(tiny_run(images=160), tmp_path / "run", resume=True)
    assert sums(tmp_path / "run", 160) == sums(straight, 160)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.4 MB; skipped where one cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("mounting a small file system needs more rights")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full_keeps_its_checkpoints(straight, small_disk):
    run = small_disk / "run"
    ema = {"constant": [0.9]}
    with pytest.raises(UsageError, match=r"No space left on device|a checkpoint takes 0.. MB"):
        go(tiny_run(images=4096, checkpoint_every=32, keep_last=99, ema=ema), run)
    kept = newest(run)
    assert kept.damaged == {}
    assert [int(folder.name) for folder in checkpoints(run)] == [32, 64]
    shutil.rmtree(checkpoint_folder(run, 32))
    go(tiny_run(images=160, keep_last=1, ema=ema), run, resume=True)
    assert sums(run, 160)["model.safetensors"] == sums(straight, 160)["model.safetensors"]


def test_a_checkpoint_that_will_not_fit_is_not_begun(straight, monkeypatch, tmp_path):
    run = tmp_path / "run"
    go(tiny_run(images=64), run)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    said = "a checkpoint takes .* MB, and 0.0 MB are free; make room and continue with"
    with pytest.raises(UsageError, match=said):
        go(tiny_run(images=160), run, resume=True)
    monkeypatch.undo()
    go(tiny_run(images=160), run, resume=True)
    assert sums(run, 160) == sums(straight, 160)


def test_checkpoints_are_copied_elsewhere(straight, tmp_path):
    copy = tmp_path / "copy"
    go(tiny_run(images=160, upload=f"file://{copy}"), tmp_path / "run")
    assert [int(folder.name) for folder in checkpoints(copy)] == [64, 128, 160]
    assert sums(copy, 160) == sums(straight, 160)
    assert load(copy).provenance["images"] == 160


# What the configuration contradicts


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"data": {"path": ""}}, "data.path is empty; name your images"),
        ({"network": {"channels": 4}}, "images have 1 or 3: this network works on latents"),
        ({"network": {"classes": 7}}, r"classes is 7, but builtin:digits has 10 classes; set"),
        ({"network": {"augment": False}}, "data.augment needs model.network.augment"),
        ({"network": {"null_class": False}}, "train.label_dropout needs .*null_class"),
        ({"data": {"size": 16}}, "the images are 16 x 16 .* takes 8 x 8"),
        ({"data": {"labels": False}}, "has 0 classes"),
        ({"coarse_weights": [0.5]}, "has 1 numbers, but the network predicts at 0 coarser"),
        ({"upload": "nowhere://x"}, r"train\.upload nowhere://x cannot be opened"),
        ({"wandb": "project"}, r"needs Weights & Biases; .*diffit-torch\[wandb\]"),
    ],
)
def test_contradictions_are_refused_before_a_folder_is_made(tmp_path, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        go(tiny_run(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


DIMR = {"name": "dimr", "size": 8, "channels": 1, "classes": 10, "widths": [16, 8],
        "depths": [3, 3], "heads": 2}  # fmt: skip


def dimr_run(formulation, **settings):
    network = {"network": DIMR, "formulation": formulation}
    data = {"path": "builtin:digits"}
    return parse(RunConfig, {"model": network, "data": data, **settings}, source="test")


def test_times_at_which_norms_no_longer_change_are_refused(tmp_path):
    config = dimr_run({"name": "ddpm", "learned_variance": False})
    with pytest.raises(ConfigError, match=r"from 0 to 250, .* --model\.network\.tau-scale 0\.002"):
        go(config, tmp_path / "run")
    scaled = {"network": {**DIMR, "tau_scale": 0.002, "tau_shift": -1.0}}
    model = {**config.model.model_dump(), **scaled}
    config = parse(RunConfig, {"model": model, "data": {"path": "builtin:digits"}}, source="test")
    complete(config, open_training_data(config))


def test_sampling_that_cannot_be_is_refused_before_training(tmp_path):
    config = tiny_run()
    sampling = config.sampling.model_copy(update={"sampler": "ancestral-learned"})
    with pytest.raises(ConfigError, match="needs a learned variance"):
        go(config.model_copy(update={"sampling": sampling}), tmp_path / "run")


def test_images_are_brought_to_the_size_of_the_network(tmp_path):
    config = tiny_run(images=16, network={"size": 16, "channels": 3, "classes": 2},
                      data={"path": "builtin:patches"})  # fmt: skip
    go(config, tmp_path / "run")
    assert Path(tmp_path / "run" / "checkpoints").exists()
