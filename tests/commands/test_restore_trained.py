"""`diffit restore` with models that were trained for it: on a task, and on a user's own pairs."""

import json

import numpy as np
import pytest
from PIL import Image

from diffit.cli import main
from diffit.config import parse
from diffit.data import open_dataset
from diffit.training.loop import train
from diffit.training.settings import RunConfig
from tiny import NETWORK, TRAIN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model for `sr2` by ResShift in 3 steps, one for pairs by InDI, and a degraded digit."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = open_dataset("builtin:digits", labels=False)
    for kind in ("clean", "degraded"):
        (folder / kind).mkdir()
        for i in range(4):
            Image.fromarray(dataset[i].image[0]).save(folder / kind / f"{i}.png")
    Image.new("L", (16, 16)).save(folder / "large.png")
    tasks = {
        "task": {"name": "sr2", "method": "resshift"},
        "pairs": {"pairs": str(folder / "degraded"), "method": "indi"},
    }
    for name, task in tasks.items():
        settings = {
            "model": {"network": {**NETWORK, "classes": 0, "augment": False}},
            "data": {"path": str(folder / "clean")},
            "train": {**TRAIN, "images": 16, "label_dropout": 0.0},
            "task": task,
        }
        train(parse(RunConfig, settings, source="test"), folder / name, quiet=True)
    return folder


def restore(folder, model, image, out, *words):
    return main(
        ["restore", str(folder / image), "--model", str(folder / model), "--out", str(out), *words]
    )


@pytest.mark.parametrize(("model", "nfe"), [("task", 15), ("pairs", 20)])
def test_a_degraded_image_is_restored_as_the_model_was_trained_to(
    folder, model, nfe, tmp_path, capsys
):
    assert restore(folder, model, "degraded/1.png", tmp_path / "out") == 0
    assert "as trained" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "restored" / "1.png") as image:
        assert np.asarray(image).shape == (8, 8)
    [record] = json.loads((tmp_path / "out" / "restore.json").read_text())["images"]
    assert (record["nfe"], record["consistency"]) == (nfe, None)


def test_a_clean_image_is_degraded_restored_and_compared(folder, tmp_path, capsys):
    words = ("--degrade", "--steps", "3", "--samples", "2")
    assert restore(folder, "task", "clean", tmp_path / "out", *words) == 0
    assert "0: 3 evaluations" in capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "restore.json").read_text())["images"]
    assert all(record["baseline"]["PSNR"] > 5 and "spread" in record for record in records)


@pytest.mark.parametrize(
    ("model", "image", "words", "message"),
    [
        ("task", "clean", ["--task", "sr4"], "trained to restore sr2, not sr4"),
        ("pairs", "clean", ["--degrade"], "nothing says how those were degraded"),
        ("task", "clean", ["--sigma-noise", "0.1"], "is shown the degraded image alone"),
        ("task", "clean", ["--guidance", "2"], "takes no guidance"),
        ("task", "clean", ["--label", "1"], "trained without classes"),
        ("task", "clean", ["--steps", "16"], "this ResShift has 1 to 15"),
        ("pairs", "large.png", [], "the degraded image is 1 x 16 x 16"),
    ],
)
def test_what_a_trained_model_cannot_do_is_refused(
    folder, model, image, words, message, tmp_path, capsys
):
    assert restore(folder, model, image, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
