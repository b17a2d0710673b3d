"""Training models that restore: tasks, pairs, methods, what they are told and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diffit.checkpoint import load
from diffit.cli import main
from diffit.config import parse
from diffit.data import open_dataset
from diffit.data.loader import Loader
from diffit.errors import ConfigError, DataError, UsageError
from diffit.explain.fitting import denoise_of
from diffit.generation import generate
from diffit.model import build_model
from diffit.restoration.supervised import restore_supervised
from diffit.restoration.tasks import find_task
from diffit.samplers import ImageNoise
from diffit.training.inputs import draw_inputs
from diffit.training.journal import read_metrics
from diffit.training.loop import open_loader, train
from diffit.training.pictures import draw_pictures
from diffit.training.prepare import complete, open_training_data
from diffit.training.restored_pictures import psnr
from diffit.training.settings import RunConfig
from tiny import NETWORK, TRAIN

METHODS = ["concat", "ir-sde", "resshift", "indi"]
DIFFIT = {**NETWORK, "classes": 0, "dropout": 0.0, "augment": False}
UVIT = {
    "name": "uvit", "size": 8, "channels": 1, "patch": 2, "width": 32, "depth": 3, "heads": 2,
}  # fmt: skip


def run_of(network=DIFFIT, *, task=None, data=None, model=None, sampling=None, **changes):
    settings = {
        "model": {"network": network, **(model or {})},
        "data": {"path": "builtin:digits", "labels": False, **(data or {})},
        "train": {**TRAIN, "label_dropout": 0.0, "ema": {"constant": [0.9]}, **changes},
        "task": {"name": "sr2"} if task is None else task,
    }
    if sampling:
        settings["sampling"] = sampling
    return parse(RunConfig, settings, source="test")


def completed(config):
    return complete(config, open_training_data(config))


def first_inputs(config, *, batch=4):
    dataset = open_training_data(config)
    config = complete(config, dataset)
    model = build_model(config.model)
    with open_loader(config, dataset, start=0) as loader:
        return draw_inputs(next(loader), model, seed=0, augmentation=config.data.augment), model


def degraded_digits(count):
    dataset = open_dataset("builtin:digits-test", labels=False)
    clean = torch.stack([torch.from_numpy(dataset[i].image) for i in range(count)]) / 127.5 - 1
    task = find_task("sr2")
    return clean, torch.stack([task.degrade(x, np.random.default_rng(0)) for x in clean])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", [DIFFIT, UVIT], ids=["diffit", "uvit"])
def test_every_method_learns_with_every_network(network, method, tmp_path):
    config = run_of(
        network, task={"name": "sr2", "method": method}, images=640, micro_batch=None, batch=32,
        log_every=160, lr=3e-3, checkpoint_every=640,
    )  # fmt: skip
    train(config, tmp_path / "run", quiet=True)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    # The noise of IR-SDE is small beside the image that it lies on.
    assert losses[-1] < (0.97 if method == "ir-sde" else 0.9) * losses[0]

    model = load(tmp_path / "run")
    assert model.config.task == "sr2"
    assert model.config.network.condition_channels == (0 if method == "indi" else 1)
    _, degraded = degraded_digits(2)
    noise = ImageNoise([0, 1], model.shape)
    settings = {"steps": 4} if method == "concat" else {}
    answer = restore_supervised(
        model.denoiser, model.codec, model.config, degraded, noise=noise, **settings
    )
    assert answer.x.shape == degraded.shape
    assert answer.x.abs().max() <= 1
    assert answer.consistency is None
    assert answer.nfe == {"concat": 7, "ir-sde": 100, "resshift": 15, "indi": 20}[method]


def test_a_tiny_model_restores_digits_better_than_they_were(tmp_path):
    config = run_of(
        task={"name": "sr2", "method": "indi"}, images=3200, batch=32, micro_batch=None, lr=4e-3,
        log_every=3200, checkpoint_every=3200, ema={"half_life": [320], "ramp": 0.05},
    )  # fmt: skip
    train(config, tmp_path / "run", quiet=True)
    model = load(tmp_path / "run")
    clean, degraded = degraded_digits(64)
    noise = ImageNoise(range(64), model.shape)
    restored = restore_supervised(
        model.denoiser, model.codec, model.config, degraded, noise=noise, steps=4
    ).x
    print(psnr(restored, clean), psnr(degraded, clean) + 1)
    assert psnr(restored, clean) > psnr(degraded, clean) + 1


def test_images_are_degraded_by_draws_of_their_own_number():
    config = run_of(task={"name": "denoise-25"}, batch=6, micro_batch=None)
    inputs, model = first_inputs(config)
    dataset = open_training_data(config)
    with open_loader(config, dataset, start=3) as loader:
        later = draw_inputs(next(loader), model, seed=0)
    assert torch.equal(inputs.clean[3:], later.clean[:3])
    assert torch.equal(inputs.image[3:], later.image[:3])
    other = inputs.image - inputs.clean
    assert not torch.allclose(other[0], other[1])
    # The task clips, as pixels do: less noise is left than was drawn, 50 / 255.
    assert 0.05 < float(other.std()) < 50 / 255


def test_two_processes_see_the_pairs_that_one_sees():
    config = run_of(task={"name": "inpaint-random"}, batch=8)
    whole, model = first_inputs(config)
    dataset = open_training_data(config)
    parts = [
        draw_inputs(next(Loader(dataset, batch=8, seed=0, rank=r, world=2)), model, seed=0)
        for r in range(2)
    ]
    assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
    assert len({tuple(row.flatten().tolist()) for row in whole.image}) == 8


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one(method, tmp_path):
    config = run_of(task={"name": "denoise-25", "method": method})
    train(config, tmp_path / "whole", quiet=True)
    half = config.model_copy(update={"train": config.train.model_copy(update={"images": 64})})
    train(half, tmp_path / "parts", quiet=True)
    train(config, tmp_path / "parts", resume=True, quiet=True)
    one, two = (load(tmp_path / name).network.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def pair_folders(folder, *, count=6, side=8, ending="png"):
    """Digits, and the same digits inverted, in two folders."""
    dataset = open_dataset("builtin:digits", labels=False)
    for name in ("clean", "degraded"):
        (folder / name / "a").mkdir(parents=True)
    for i in range(count):
        image = dataset[i].image[0]
        Image.fromarray(image).save(folder / "clean" / "a" / f"{i}.png")
        Image.fromarray(255 - image).resize((side, side)).save(
            folder / "degraded" / "a" / f"{i}.{ending}"
        )


def run_of_pairs(folder, **data):
    return run_of(
        task={"pairs": str(folder / "degraded")}, data={"path": str(folder / "clean"), **data}
    )


@pytest.mark.parametrize("changes", [{}, {"flip": True}])
def test_pairs_stay_pairs(changes, tmp_path):
    pair_folders(tmp_path)
    inputs, model = first_inputs(run_of_pairs(tmp_path, **changes))
    assert model.config.task == "pairs"
    assert inputs.clean.shape == inputs.image.shape == (16, 1, 8, 8)
    torch.testing.assert_close(inputs.image, -inputs.clean)


def test_pairs_are_augmented_together(tmp_path):
    pair_folders(tmp_path)
    config = run_of_pairs(tmp_path, augment=1.0)
    network = config.model.network.model_copy(update={"augment": True})
    model = config.model.model_copy(update={"network": network})
    inputs, _ = first_inputs(config.model_copy(update={"model": model}))
    torch.testing.assert_close(inputs.image, -inputs.clean, atol=1e-4, rtol=1e-4)


def test_degraded_images_of_another_size_are_brought_to_that_of_the_clean_ones(tmp_path):
    pair_folders(tmp_path, side=4, ending="bmp")
    assert first_inputs(run_of_pairs(tmp_path))[0].image.shape == (16, 1, 8, 8)


def test_a_run_on_pairs_resumes_with_decoding_workers_as_without(tmp_path):
    pair_folders(tmp_path)
    config = run_of_pairs(tmp_path)
    train(config, tmp_path / "one", quiet=True)
    train(
        config.model_copy(update={"data": config.data.model_copy(update={"workers": 1})}),
        tmp_path / "two",
        quiet=True,
    )
    one, two = (load(tmp_path / name).network.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_pair_without_a_partner_is_refused_by_name(tmp_path):
    pair_folders(tmp_path)
    (tmp_path / "degraded" / "a" / "3.png").unlink()
    with pytest.raises(DataError, match=r"1 of 6 images have no degraded one.*such as a/3"):
        open_training_data(run_of_pairs(tmp_path))
    (tmp_path / "clean" / "a" / "3.png").unlink()
    (tmp_path / "clean" / "a" / "4.png").unlink()
    with pytest.raises(DataError, match=r"1 of 5 images have no clean one.*such as a/4"):
        open_training_data(run_of_pairs(tmp_path))


def test_two_images_of_one_name_are_refused(tmp_path):
    pair_folders(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "degraded" / "a" / "3.bmp")
    with pytest.raises(DataError, match=r"a/3.bmp and a/3.png, which both go by one name"):
        open_training_data(run_of_pairs(tmp_path))


def test_an_empty_or_missing_folder_of_pairs_is_refused(tmp_path):
    pair_folders(tmp_path)
    (tmp_path / "empty").mkdir()
    config = run_of_pairs(tmp_path)
    for name, message in (("empty", "holds no images"), ("none", "nothing to read")):
        task = config.task.model_copy(update={"pairs": str(tmp_path / name)})
        with pytest.raises(DataError, match=message):
            open_training_data(config.model_copy(update={"task": task}))


def test_pairs_of_a_built_in_set_are_refused(tmp_path):
    pair_folders(tmp_path)
    with pytest.raises(ConfigError, match=r"task\.pairs needs data.path to be a folder or zip"):
        open_training_data(run_of(task={"pairs": str(tmp_path / "degraded")}))


def test_a_method_decides_formulation_steps_and_condition():
    config = completed(run_of(task={"name": "sr2", "method": "resshift"}))
    assert config.model.formulation.name == "resshift"
    assert config.sampling.steps == 15
    assert config.model.network.condition_channels == 1
    assert completed(config) == config
    own = completed(run_of(model={"formulation": {"name": "resshift", "steps": 4, "kappa": 1.0}}))
    assert (own.model.formulation.kappa, own.sampling.steps) == (1.0, 4)
    irsde = completed(run_of(model={"formulation": {"name": "ir-sde", "steps": 30}}))
    assert (irsde.sampling.sampler, irsde.sampling.steps) == ("ancestral", 30)
    flow = completed(run_of(model={"formulation": {"name": "flow"}}))
    assert (flow.model.formulation.name, flow.sampling.sampler) == ("flow", "heun")
    indi = completed(
        run_of({**DIFFIT, "condition_channels": 1}, task={"name": "sr2", "method": "indi"})
    )
    assert indi.model.network.condition_channels == 1


REFUSED = {
    "there is no task 'srr2'.*sr2": {"task": {"name": "srr2"}},
    "colorize needs images with three": {"task": {"name": "colorize"}},
    "task.name and task.pairs are both set": {"task": {"name": "sr2", "pairs": "x"}},
    "task.method needs task.name or task.pairs": {"task": {"method": "indi"}},
    "says nothing of what is to be restored": {
        "task": {}, "model": {"formulation": {"name": "indi"}},
    },
    "condition_channels is 2, but the degraded image has 1": {
        "network": {**DIFFIT, "condition_channels": 2},
    },
    "train.teacher is for models that make images": {"teacher": "x"},
    "steps is 18; this ResShift has 1 to 15": {
        "model": {"formulation": {"name": "resshift"}},
        "sampling": {"steps": 18, "sampler": "ddim"},
    },
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_task_cannot_have_is_refused(message):
    with pytest.raises((ConfigError, UsageError), match=message):
        completed(run_of(**REFUSED[message]))


def test_a_model_that_restores_makes_no_images():
    config = completed(run_of())
    with pytest.raises(UsageError, match=r"trained to restore images \(sr2\).*`diffit restore`"):
        generate(build_model(config.model), [0])
    with pytest.raises(UsageError, match="trained to restore images"):
        denoise_of(build_model(config.model))


def test_commands_that_give_no_degraded_image_refuse_the_model(tmp_path, capsys):
    train(run_of(images=16, checkpoint_every=16), tmp_path / "run", quiet=True)
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert main(["info", run]) == 0
    assert "restores     sr2" in capsys.readouterr().out
    for words in (
        ["sample", run, "--out", out],
        ["export", run, "--out", f"{out}.onnx"],
        ["quantize", run, "--to", "int8", "--out", out],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "trained to restore images (sr2)" in error


def test_pictures_show_degraded_restored_and_clean_images(tmp_path):
    config = run_of(task={"name": "sr2", "method": "indi"}, snapshot_images=10)
    train(config, tmp_path / "run", quiet=True, on_snapshot=draw_pictures)
    [folder] = (tmp_path / "run" / "snapshots").iterdir()
    with Image.open(folder / "restored.png") as picture:
        assert picture.width > 3 * 8 * 64
    figures = json.loads((folder / "restored.json").read_text())
    assert figures["images"] == 10
    assert 5 < figures["psnr_degraded"] < 30
    assert math.isfinite(figures["psnr_restored"])
    assert (tmp_path / "run" / "loss.png").exists()
