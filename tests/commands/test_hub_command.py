"""`diffit hub` as a user types it, against a hub on this machine."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import diffit
from diffit.cli import main
from diffit.evaluation.passport import FORMAT
from diffit.hub import Card, read_folder
from diffit.training.loop import train
from tiny import tiny_run
from tiny_hub import same, write


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    train(tiny_run(), run, quiet=True)
    return run


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A folder with a run in it, called `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "run").symlink_to(trained)
    return tmp_path


def passport(path: Path) -> str:
    interval = {"low": 11.9, "high": 12.8, "level": 0.95, "method": "bootstrap"}
    images = {"path": "x.zip", "kind": "images", "count": 9, "shape": [1, 8, 8], "hash": "0"}
    path.write_text(json.dumps({
        "format": FORMAT,
        "figures": [{"name": "FID", "metric": "fd", "value": 12.3456, "interval": interval,
                     "samples": 5000, "reference": 9, "better": "lower", "settings": {},
                     "features": "f", "protocol": "adm"}],
        "samples": images, "reference": images,
        "features": [{"name": "f", "dims": 1, "hash": "0", "protocol": "adm", "resize": "r"}],
        "generation": {}, "seed": 0, "versions": {}, "notes": [],
    }))  # fmt: skip
    return str(path)


def test_export_writes_a_folder_that_draws_the_same_images(here, capsys):
    words = ["hub", "export", "run", "out", "--licence", "mit", "--name", "me/digits",
             "--max-shard-size", "20KB", "--passport", passport(here / "report.json")]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("out: diffit, 0.")
    assert "MB of weights in" in printed
    assert printed.endswith("files, mit\n")
    assert same(diffit.load("run").network, diffit.load("out").network)
    card = read_folder(Path("out")).card
    assert (card.licence, card.provenance["weights"]) == ("mit", "ema-0.9")
    assert card.provenance["images"] == 128
    assert "| FID (adm) | 12.35 | 11.9 to 12.8 |" in Path("out/README.md").read_text()
    options = ["--count", "4", "--steps", "2", "--unit", "4"]
    assert main(["sample", "run", "--out", "a", *options]) == 0
    assert main(["sample", "out", "--out", "b", *options]) == 0
    for image in Path("a/images").glob("*.png"):
        assert image.read_bytes() == (Path("b/images") / image.name).read_bytes()


def test_export_stores_other_weights_in_half_precision(here, capsys):
    assert main(["hub", "export", "run", "out", "--weights", "model", "--dtype", "bf16"]) == 0
    assert "no licence is named" in capsys.readouterr().out
    tensors = load_file("out/model.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.bfloat16}
    assert read_folder(Path("out")).card.provenance["weights"] == "model"


def test_a_folder_is_exported_again_with_what_is_new(here):
    assert main(["hub", "export", "run", "a", "--licence", "mit", "--source", "here"]) == 0
    assert main(["hub", "export", "a", "b", "--title", "Digits"]) == 0
    card = read_folder(Path("b")).card
    assert (card.licence, card.source, card.title) == ("mit", "here", "Digits")
    assert card.provenance == read_folder(Path("a")).card.provenance


def test_push_pull_and_sample_by_id(here, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    write(here / "out", card=Card(licence="cc-by-nc-4.0"))
    assert main(["hub", "push", "out", "me/digits", "--private"]) == 0
    assert f"me/digits: {hub.address}/me/digits/commit/" in capsys.readouterr().out
    assert main(["hub", "pull", "me/digits@v2", "again"]) == 0
    assert capsys.readouterr().out.startswith("again: diffit, ")
    assert read_folder(here / "again") == read_folder(here / "out")
    words = ["sample", "me/digits", "--out", "images", "--count", "4", "--steps", "2",
             "--unit", "2", "--processes", "2"]  # fmt: skip
    assert main(words) == 0
    notes = capsys.readouterr().err
    assert notes.count("diffit: note: these weights are for non-commercial use only (cc-by-n") == 1
    assert len(list(Path("images/images").glob("*.png"))) == 4
    assert main(["info", "me/digits"]) == 0
    assert "licence      cc-by-nc-4.0: for non-commercial use only" in capsys.readouterr().out
    words = ["train", "tiny-diffit", "--out", "new", "--train.init-from", "me/none"]
    assert main(words) == 2
    assert "there is no folder me/none here" in capsys.readouterr().err


def test_info_says_what_a_folder_is_and_whether_it_is_whole(here, capsys):
    main(["hub", "export", "run", "out", "--licence", "mit", "--passport",
          passport(here / "report.json")])  # fmt: skip
    capsys.readouterr()
    assert main(["info", "out"]) == 0
    printed = capsys.readouterr().out
    for line in ("network      diffit, 8 x 8", "sampling     sampler heun, steps 18",
                 "licence      mit\n", "bytes in model.safetensors",
                 "FID (adm)    12.35 (11.9 to 12.8), 5,000 samples against x.zip"):  # fmt: skip
        assert line in printed
    assert "damaged" not in printed
    with Path("out/model.safetensors").open("ab") as file:
        file.write(b"x")
    assert main(["info", "out"]) == 0
    assert "damaged      out is damaged: model.safetensors has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("hub", "hub needs one of: export, push, pull"),
        ("hub export run", "hub export: OUT must be given"),
        ("hub export nowhere out", "nowhere does not exist; name a checkpoint or the folder of a"),
        ("hub export run run", "run exists and is no hub-style folder; name a new one"),
        ("hub export run out --max-shard-size 5", "max_shard_size is '5'; write a size such as"),
        ("hub export run out --weights ema", "has no weights 'ema'; there are: ema-0.9"),
        ("hub export run out --passport no.json", "no.json does not exist"),
        ("hub push run me/x", "run/config.json does not exist; name a hub-style folder"),
        ("hub pull run out", "run is no repository; write owner/name or owner/name@revision"),
        ("hub pull me/x:a.safetensors out", "me/x:a.safetensors is no repository; write owner"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(here, hub, words, answer, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert answer in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(p.name for p in here.iterdir() if "cache" not in p.name) == ["run"]


def test_a_killed_export_leaves_no_half_folder(here):
    code = (
        "import os, signal, diffit.hub.folder as f; from diffit.cli import main;"
        "f.render = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL);"
        "main(['hub', 'export', 'run', 'out'])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=here).returncode == -9
    assert not Path("out").exists()
    assert main(["hub", "export", "run", "out"]) == 0
    assert sorted(p.name for p in here.iterdir()) == ["out", "run"]
