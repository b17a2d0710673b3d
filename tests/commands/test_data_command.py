import json
from pathlib import Path

import numpy as np
import pytest

from diffit.cli import main
from diffit.data import open_dataset
from diffit.data.images import read_image, write_png


@pytest.fixture
def images(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "my images").mkdir(exist_ok=True)
        image = rng.integers(0, 256, (3, 20, 30), dtype=np.uint8)
        write_png(tmp_path / "my images" / f"{i} [b]ü.png", image)
    return tmp_path / "my images"


def test_inspect_says_what_is_there_and_draws_it(images: Path, tmp_path: Path, capsys) -> None:
    assert main(["data", "inspect", "my images"]) == 0
    printed = capsys.readouterr().out
    assert "my images: images in one folder" in printed
    assert "30 x 20 (12)" in printed
    assert 'data: {path: "my images", size: 16}' in printed
    assert read_image(tmp_path / "contact-sheet.png").shape[0] == 3


def test_inspect_prints_json(images: Path, tmp_path: Path, capsys) -> None:
    assert main(["data", "inspect", "my images", "--json", "--sheet", "None"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    assert not (tmp_path / "contact-sheet.png").exists()


def test_names_with_brackets_are_printed_as_they_are(images: Path, capsys) -> None:
    (images / "x [red].png").write_bytes(b"text")
    (images / "copy [i].png").write_bytes((images / "3 [b]ü.png").read_bytes())
    assert main(["data", "inspect", "my images", "--sheet", "None"]) == 0
    printed = capsys.readouterr().out
    assert "x [red].png is no image that can be read" in printed
    assert "3 [b]ü.png = copy [i].png" in printed


def test_pack_makes_a_zip_that_opens(images: Path, tmp_path: Path, capsys) -> None:
    assert main(["data", "pack", "my images", "out.zip", "--size", "8"]) == 0
    assert "out.zip: 12 images" in capsys.readouterr().out
    assert open_dataset(tmp_path / "out.zip").shape == (3, 8, 8)


def test_pack_says_what_it_left_out(images: Path, capsys) -> None:
    (images / "x.png").write_bytes(b"text")
    assert main(["data", "pack", "my images", "out.zip", "--size", "8", "--skip-unreadable"]) == 0
    printed = capsys.readouterr().out
    assert "left out: my images/x.png is no image that can be read" in printed
    assert "12 images" in printed


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        (["inspect", "nothing here"], "there is nothing to read at 'nothing here'"),
        (["inspect", "builtin:patch"], "there is no builtin:patch; did you mean 'patches'?"),
        (["inspect", "my images", "--sheet", "a.jpg"], "--sheet a.jpg must end in .png"),
        (["pack", "my images", "out.zip"], "set data.size to crop and resize all"),
        (["pack", "my images", "out.zip", "--size", "0"], "size is 0"),
        (["pack", "my images", "out.rar", "--size", "8"], "out.rar must end in .zip"),
        (["unpack", "my images"], "there is no command diffit data 'unpack'; did you mean 'pack'?"),
        ([], "data needs one of: inspect, pack"),
    ],
)
def test_mistakes_are_answered_in_one_line(images: Path, capsys, args, answer) -> None:
    write_png(images / "wide.png", np.zeros((3, 20, 31), np.uint8))
    assert main(["data", *args]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("diffit: ")
    assert answer in printed
    assert printed.count("\n") == 1
