"""`diffit evaluate --metrics bpd` as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffit.checkpoint import load, save_model
from diffit.cli import main
from diffit.commands.evaluate_bits import Bits, bits_of
from diffit.data import open_dataset
from diffit.model import build_model
from tiny import tiny_run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bits") / "model"
    config = tiny_run(network={"augment": False})
    model = build_model(config.model, seed=0)
    save_model(path, config, {"model": model.network.state_dict()}, {"images": 0})
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images = np.stack([open_dataset("builtin:digits-test")[i].image for i in range(10)])
    np.savez(path, images=images.transpose(0, 2, 3, 1))
    return path


def refused(capsys, *argv: str) -> str:
    assert main(["evaluate", *map(str, argv)]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def measured(checkpoint, digits, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bits.json"
    argv = ["evaluate", str(digits), "--metrics", "bpd", "--model", str(checkpoint)]
    assert main([*argv, "--out", str(out)]) == 0
    return out


def test_the_record_says_what_was_measured(measured, checkpoint, digits):
    record = json.loads(measured.read_text())
    assert record["count"] == len(record["images"]) == 10
    assert record["bits_per_dimension"] == pytest.approx(np.mean(record["images"]))
    assert record["samples"] == str(digits)
    assert record["labels"] == "none"
    # Images under a network that knows nothing cost about as much as they have bits, or more.
    assert 4 < record["bits_per_dimension"] < 40
    assert not measured.with_name("bits.json.part").exists()


def test_an_image_has_the_value_it_has_alone(measured, checkpoint, digits):
    record = json.loads(measured.read_text())
    places = list(range(8))
    rows = bits_of(load(checkpoint), open_dataset(digits), places, seed=0)
    assert [row.bits for row in rows] == record["images"][:8]


def test_a_killed_measurement_goes_on(measured, checkpoint, digits, tmp_path, capsys):
    record = json.loads(measured.read_text())
    own = ("bits_per_dimension", "standard_error", "evaluations", "images", "versions")
    head = {key: value for key, value in record.items() if key not in own}
    partial = tmp_path / "bits.json.part"
    rows = [json.dumps(Bits(i, 5.0, 7)._asdict()) for i in range(8)]
    partial.write_text("\n".join([json.dumps(head), *rows, '{"image": 8, "bi']))
    argv = ["evaluate", str(digits), "--metrics", "bpd", "--model", str(checkpoint)]
    assert main([*argv, "--out", str(tmp_path / "bits.json")]) == 0
    assert "8 of 10 images are measured already" in capsys.readouterr().err
    again = json.loads((tmp_path / "bits.json").read_text())
    assert again["images"] == [5.0] * 8 + record["images"][8:]
    assert not partial.exists()


def test_what_has_no_likelihood_is_refused(capsys, checkpoint, digits, tmp_path):
    bits = ("--metrics", "bpd")
    assert "name it with --model" in refused(capsys, digits, *bits)
    message = refused(capsys, digits, "--model", checkpoint)
    assert "measured alone: add --metrics bpd" in message
    message = refused(capsys, digits, "--metrics", "bpd", "fd", "--model", checkpoint)
    assert "bpd is measured alone" in message
    message = refused(capsys, digits, *bits, "--model", checkpoint, "--reference", digits)
    assert "compares with nothing" in message
    message = refused(capsys, "builtin:patches", *bits, "--model", checkpoint)
    assert "the images are 32 x 32 x 3" in message
    message = refused(capsys, digits, *bits, "--model", checkpoint, "--out", digits)
    assert "exists already; name a new file" in message
