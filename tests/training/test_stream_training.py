"""Training from shards: interrupted or not, near or far, by one process or two."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffit.checkpoint import checkpoint_folder
from diffit.config import write_yaml
from diffit.data import open_dataset
from diffit.data.images import to_png, write_png
from diffit.data.index_shards import index_shards
from diffit.data.order import Order
from diffit.data.pack_shards import pack_shards
from diffit.errors import ConfigError, DataError
from diffit.sealed import read_state
from diffit.training.journal import read_metrics
from diffit.training.loop import train
from diffit.training.pictures import real_images
from shard_sets import drop, every, serving
from tiny import tiny_run

EVERY = 64


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 200 digits in shards of 20, with an index."""
    folder = tmp_path_factory.mktemp("digits")
    digits = open_dataset("builtin:digits")
    for first in range(0, 200, 20):
        with tarfile.open(folder / f"d-{first // 20:03d}.tar", "w") as tar:
            for i in range(first, first + 20):
                image, label = digits[i]
                for ending, data in (("png", to_png(image)), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{i:04d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    index_shards(str(folder), folder / "shards.json")
    return folder


def config(path: Path | str, cache: Path, **train_settings):
    stream = {"cache": str(cache), "window": 2, "classes": 10, "timeout": 5}
    data = {"path": str(path), "stream": stream, "augment": 0.5}
    return tiny_run(data=data, checkpoint_every=EVERY, **train_settings)


def go(settings, run: Path, **options):
    return train(settings, run, quiet=True, **options)


def weights(run: Path, images: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folder(run, images) / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("form", ["local", "indexed", "unknown"])
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch_learns_the_same(
    shards: Path, tmp_path: Path, form: str
) -> None:
    with serving(shards, every(7, drop)) as server:
        path = {
            "local": shards,
            "indexed": f"{server.address}/",
            "unknown": f"{server.address}/d-{{000..009}}.tar",
        }[form]
        go(config(path, tmp_path / "cache", images=144), tmp_path / "whole")
        go(config(path, tmp_path / "cache", images=64), tmp_path / "parts")
        go(config(path, tmp_path / "cache", images=144), tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole", 144), weights(tmp_path / "parts", 144))
    streams = read_state(checkpoint_folder(tmp_path / "parts", 144))["streams"]
    assert [(s["rank"], s["world"]) for s in streams] == [(0, 1)]
    assert (streams[0]["walks"][0] is not None) == (form == "unknown")


def test_a_run_whose_shard_has_vanished_keeps_its_steps_and_goes_on_when_it_is_back(
    shards: Path, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    shutil.copytree(shards, served)
    settings = config(served, tmp_path / "cache", images=144)
    go(settings, tmp_path / "whole")
    order = Order([20] * 10, seed=settings.train.seed, window=2)
    lost = served / f"d-{order(50) // 20:03d}.tar"  # of the second window
    lost.rename(tmp_path / "away")
    with pytest.raises(DataError, match=rf"{lost.name} cannot be read"):
        go(settings, tmp_path / "run")
    assert 32 <= max(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()) <= 48
    (tmp_path / "away").rename(lost)
    go(settings, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "whole", 144), weights(tmp_path / "run", 144))


def test_where_shards_lie_does_not_change_what_is_learned(shards: Path, tmp_path: Path) -> None:
    go(config(shards, tmp_path / "cache"), tmp_path / "local")
    with serving(shards) as server:
        go(config(f"{server.address}/", tmp_path / "cache"), tmp_path / "remote")
    assert same(weights(tmp_path / "local", 128), weights(tmp_path / "remote", 128))


def run_command(settings, run: Path, *words: str) -> None:
    file = run.with_suffix(".yaml")
    write_yaml(file, settings)
    command = [sys.executable, "-m", "diffit", "train", str(file), "--out", str(run), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


def test_two_processes_learn_from_a_stream_what_one_learns(shards: Path, tmp_path: Path) -> None:
    """Up to the order in which gradients are summed: 8 steps in float32."""
    with serving(shards, every(9, drop)) as server:
        settings = config(f"{server.address}/", tmp_path / "cache", images=128, threads=1)
        go(settings, tmp_path / "one")
        run_command(settings, tmp_path / "two", "--processes", "2")
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["images"] for line in two] == [32, 64, 96, 128]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
    streams = read_state(checkpoint_folder(tmp_path / "two", 128))["streams"]
    assert [(s["rank"], s["world"]) for s in streams] == [(0, 2), (1, 2)]


def test_bad_images_are_told_in_the_journal(shards: Path, tmp_path: Path, capsys) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in sorted(shards.glob("*.tar"))[:3]:
        data = bytearray(path.read_bytes())
        at = data.index(b"IDAT")
        data[at : at + 40] = bytes(40)
        (damaged / path.name).write_bytes(data)
    settings = config(damaged, tmp_path / "cache")
    with pytest.raises(DataError, match=r"raise data.stream.max_bad above 0"):
        go(settings, tmp_path / "stopped")
    stream = settings.data.stream.model_copy(update={"max_bad": 3})
    data = settings.data.model_copy(update={"stream": stream})
    train(settings.model_copy(update={"data": data}), tmp_path / "run")
    assert "passed over image 3 of 3" in capsys.readouterr().out.replace("\n", " ")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["images"] == 128


def test_a_mixture_is_trained_on(shards: Path, tmp_path: Path) -> None:
    mix = [{"path": str(shards), "weight": 2}, {"path": "builtin:digits"}]
    settings = tiny_run(data={"path": "", "mix": mix}, images=64)
    assert go(settings, tmp_path / "run").images == 64
    with pytest.raises(ConfigError, match=r"data.path is empty"):
        go(tiny_run(data={"path": ""}), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"data.path and data.mix are both set"):
        tiny_run(data={"path": str(shards), "mix": mix})


def test_pictures_need_one_shard_alone(shards: Path, tmp_path: Path) -> None:
    with serving(shards) as server:
        settings = config(f"{server.address}/", tmp_path / "cache")
        found = open_dataset(f"{server.address}/", stream=settings.data.stream)
        assert real_images(found, 8, None).shape == (8, 1, 8, 8)
        assert sum(name.endswith(".tar") for name in server.asked) == 1


def test_packed_shards_of_a_folder_are_trained_on(tmp_path: Path) -> None:
    digits = open_dataset("builtin:digits")
    for i in range(60):
        folder = tmp_path / "images" / str(digits[i].label)
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"{i}.png", digits[i].image)
    pack_shards(str(tmp_path / "images"), tmp_path / "shards", shard_mib=1)
    settings = config(tmp_path / "shards", tmp_path / "cache", images=32)
    assert go(settings, tmp_path / "run").images == 32
