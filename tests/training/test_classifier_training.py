"""Training of classifiers: they learn, they resume bit for bit, they refuse what is no task."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from diffit import draws
from diffit.config import parse
from diffit.data.loader import Batch
from diffit.errors import ConfigError, DataError, DiffitError, UsageError
from diffit.explain.classifier_folder import load_classifier, read_card
from diffit.sealed import read_state
from diffit.training import classifier
from diffit.training.classifier import train_classifier
from diffit.training.classifier_inputs import (
    accuracy,
    batches,
    draw_images,
    open_denoiser,
    open_sets,
    shifted,
)
from diffit.training.classifier_settings import ClassifierRun, ClassifierTrain
from diffit.training.journal import read_metrics
from diffit.training.loop import train
from tiny import tiny_run

NETWORK = {"width": 16, "depth": 1, "heads": 2, "dropout": 0.1}
TRAIN = {
    "images": 320, "batch": 16, "noise": 0.5, "log_every": 64, "checkpoint_every": 96, "warmup": 64
}  # fmt: skip


def tiny(*, data=None, held_out="", network=None, **train):
    """A run of seconds with every source of randomness switched on."""
    settings = {
        "data": {"path": "builtin:digits", "flip": True, **(data or {})},
        "held_out": held_out,
        "network": {**NETWORK, **(network or {})},
        "train": {**TRAIN, **train},
    }
    return parse(ClassifierRun, settings, source="test")


def go(run, out):
    return train_classifier(run, out, quiet=True)


def outcome(out):
    """What a run has made, without what depends on the clock."""
    clocks = ("images_per_second", "seconds")
    lines = [
        {key: value for key, value in line.items() if key not in clocks}
        for line in read_metrics(out / "metrics.jsonl")
    ]
    weights = read_state(out / "classifier")["files"]["model.safetensors"]["blake2b"]
    last = read_state(max((out / "checkpoints").iterdir()))["files"]
    return lines, weights, {name: note["blake2b"] for name, note in last.items()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run without any interruption."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    go(tiny(), out)
    return out


def at(monkeypatch, images, act):
    """Act when the run has seen so many images."""
    step = classifier._step

    def acting(run, state, *rest):
        if state.images == images:
            act()
        step(run, state, *rest)

    monkeypatch.setattr(classifier, "_step", acting)


class CrashError(Exception):
    pass


def crash():
    raise CrashError


def crashed_at(images, out, monkeypatch):
    with monkeypatch.context() as patch:
        at(patch, images, crash)
        with pytest.raises(CrashError):
            go(tiny(), out)


def test_it_learns_the_digits(tmp_path):
    run = tiny(
        images=12_000, batch=32, lr=6e-3, warmup=1000, noise=0.0, shift=0, ema=0.9, log_every=4000,
        data={"flip": False}, network={"width": 32, "patch": 4, "dropout": 0.0},
    )  # fmt: skip
    trained = go(run, tmp_path / "run")
    assert trained.reason == "done"
    assert trained.accuracy > 0.8  # chance is 0.1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["held_out"] == {"accuracy": trained.accuracy, "images": 299}
    assert report["train"]["images"] == 1498
    card = read_card(trained.folder)
    assert (card.accuracy, card.held_out, card.data) == (trained.accuracy, 299, "builtin:digits")
    vit = load_classifier(trained.folder)
    assert accuracy(vit, open_sets(run)[1]) == trained.accuracy
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize("moment", [16, 96, 112, 304])
def test_a_crashed_run_goes_on_bit_for_bit(straight, tmp_path, monkeypatch, moment):
    crashed_at(moment, tmp_path / "run", monkeypatch)
    assert not (tmp_path / "run" / "classifier").exists()
    go(tiny(), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(straight)


def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_bit_for_bit(
    straight, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        at(patch, 48, lambda: os.kill(os.getpid(), signal.SIGINT))
        ended = go(tiny(), tmp_path / "run")
    assert (ended.reason, ended.images, ended.folder) == ("interrupted", 64, None)
    assert go(tiny(), tmp_path / "run").reason == "done"
    assert outcome(tmp_path / "run") == outcome(straight)


def test_a_damaged_checkpoint_is_passed_over(straight, tmp_path, monkeypatch, capsys):
    crashed_at(256, tmp_path / "run", monkeypatch)
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    (newest / "ema.safetensors").write_bytes(b"torn")
    train_classifier(tiny(), tmp_path / "run")
    said = capsys.readouterr().out
    assert "ema.safetensors" in said
    assert "goes on at 96 images" in said
    assert outcome(tmp_path / "run") == outcome(straight)


def test_a_finished_run_is_repeated_without_training(straight, monkeypatch):
    before = outcome(straight)
    at(monkeypatch, 320, crash)
    assert go(tiny(), straight).reason == "done"
    assert outcome(straight) == before


def test_another_run_or_folder_is_left_alone(straight, tmp_path):
    with pytest.raises(UsageError, match="other settings"):
        go(tiny(seed=1), straight)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="name a new folder"):
        go(tiny(), tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_in_a_sentence(tmp_path):
    with pytest.raises(DiffitError, match=r"not finite at \d+ images; .* lower train.lr"):
        go(tiny(lr=1e30, warmup=0, clip=None), tmp_path / "run")


def digits(numbers):
    _, held_out = open_sets(tiny())
    images = torch.from_numpy(np.stack([held_out[n].image for n in numbers]))
    return Batch(images, torch.zeros(len(numbers)).long(), torch.tensor(numbers))


CPU = torch.device("cpu")


def test_what_is_done_to_an_image_follows_from_its_number_alone():
    train = ClassifierTrain(noise=1.0, noise_share=0.7, shift=2)
    together = draw_images(digits([3, 4, 5, 6]), train, denoise=None, device=CPU)
    alone = [draw_images(digits([n]), train, denoise=None, device=CPU) for n in (3, 4, 5, 6)]
    assert torch.equal(together, torch.cat(alone))
    other = train.model_copy(update={"seed": 1})
    assert not torch.equal(
        together, draw_images(digits([3, 4, 5, 6]), other, denoise=None, device=CPU)
    )


def test_the_stated_share_of_the_images_gets_noise_of_the_stated_range():
    numbers = list(range(200))
    train = ClassifierTrain(noise=0.8, noise_share=0.25, shift=0)
    batch = digits(numbers)
    noise = draw_images(batch, train, denoise=None, device=CPU) - (batch.image / 127.5 - 1)
    level = noise.flatten(1).std(1)
    noisy = level > 0
    assert 30 < int(noisy.sum()) < 70
    assert 0.7 < float(level[noisy].max()) < 1.0
    assert 0.25 < float(level[noisy].mean()) < 0.55  # uniform: 0.4


def test_the_denoiser_is_told_the_level_and_sees_the_noisy_images_alone():
    seen = []

    def denoise(x, sigma):
        seen.append((x, sigma))
        return torch.full_like(x, 3.0)

    train = ClassifierTrain(noise=0.8, noise_share=0.5, shift=0)
    batch = digits(list(range(40)))
    images = draw_images(batch, train, denoise=denoise, device=CPU)
    (x, sigma), count = seen[0], len(seen)
    changed = (images == 1).flatten(1).all(1)  # 3 is clipped to 1
    assert count == 1
    assert 10 < len(x) == int(changed.sum()) == len(sigma) < 30
    assert torch.equal(images[~changed], (batch.image.float() / 127.5 - 1)[~changed])
    plain = draw_images(batch, train, denoise=None, device=CPU)
    assert torch.equal(x, plain[changed])


def test_images_move_down_and_to_the_right_and_black_comes_in():
    image = torch.arange(1.0, 7).reshape(1, 1, 2, 3)
    moved = shifted(image.expand(3, -1, -1, -1), torch.tensor([[0, 0], [1, 0], [0, -1]]))
    assert moved[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert moved[1, 0].tolist() == [[-1, -1, -1], [1, 2, 3]]
    assert moved[2, 0].tolist() == [[2, 3, -1], [5, 6, -1]]


def npz(path, images, labels):
    np.savez(path, images=images, labels=labels)
    return str(path)


def test_every_tenth_image_of_a_set_is_held_out(tmp_path):
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] + np.zeros((40, 8, 8, 1), np.uint8)
    path = npz(tmp_path / "set.npz", images, np.arange(40) % 2)
    learnt, held_out = open_sets(tiny(data={"path": path}))
    assert [int(e.image[0, 0, 0]) for e in map(held_out.__getitem__, range(4))] == [0, 10, 20, 30]
    assert len(learnt) == 36
    assert [learnt.label(i) for i in range(3)] == [learnt[i].label for i in range(3)] == [1, 0, 1]
    (few, labels), *_ = batches(held_out, size=3)
    assert labels.tolist() == [0, 0, 0]
    assert few[1].unique().tolist() == pytest.approx([10 / 127.5 - 1])
    assert [len(x) for x, _ in batches(learnt, size=5, most=8)] == [5, 3]


def test_a_set_of_its_own_may_be_held_out():
    learnt, held_out = open_sets(tiny(data={"path": "builtin:patches"}))
    assert (len(learnt), len(held_out)) == (3600, 400)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"data": {"path": "builtin:digits-test"}}, DataError, "would measure what it has trained"),
        ({"held_out": "builtin:patches-test"}, DataError, "both must agree"),
        ({"data": {"labels": False}}, ConfigError, "needs data.labels"),
        ({"data": {"augment": 0.5}}, ConfigError, "data.augment is for denoisers"),
        ({"data": {"path": "/no/such/set"}}, DataError, "nothing to read"),
    ],
)
def test_what_cannot_be_learnt_is_refused_in_a_sentence(tmp_path, change, error, sentence):
    with pytest.raises(error) as found:
        go(tiny(**change), tmp_path / "run")
    assert sentence in str(found.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "labels", "sentence"),
    [
        ((20, 8, 8, 1), np.zeros(20, int), "needs two at least"),
        ((20, 8, 9, 1), np.arange(20) % 2, "not square"),
        ((9, 8, 8, 1), np.arange(9) % 2, "none can be held out"),
    ],
)
def test_sets_that_are_no_task_are_refused_in_a_sentence(tmp_path, shape, labels, sentence):
    path = npz(tmp_path / "set.npz", np.zeros(shape, np.uint8), labels)
    with pytest.raises(DataError, match=sentence):
        open_sets(tiny(data={"path": path}))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": {"patch": 3}}, "network: size 8 is no multiple of patch 3"),
        ({"network": {"heads": 3}}, "heads"),
        ({"noise": 0.0, "denoiser": "runs/x"}, "set train.noise"),
        ({"label_smoothing": 1.0}, "train.label_smoothing"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_sentence(tmp_path, settings, sentence):
    with pytest.raises(ConfigError) as found:
        go(tiny(**settings), tmp_path / "run")
    assert sentence in str(found.value)


def test_a_denoiser_of_other_images_is_refused(tmp_path):
    train(tiny_run(images=16), tmp_path / "denoiser", quiet=True)
    path = str(tmp_path / "denoiser")
    assert open_denoiser("", (1, 8, 8)) is None
    denoise = open_denoiser(path, (1, 8, 8))
    x = draws.normal(0, range(2), "x", (1, 8, 8))
    assert denoise(x, torch.tensor(0.5)).shape == x.shape
    with pytest.raises(ConfigError, match="works on"):
        open_denoiser(path, (3, 32, 32))
