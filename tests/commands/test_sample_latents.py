"""`diffit sample` of a model of latents: drawn, decoded, and refused before anything is drawn."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoders import make
from diffit import load
from diffit.checkpoint import save_model
from diffit.cli import main
from diffit.codecs import AutoencoderConfig
from diffit.codecs.autoencoder import identify
from diffit.config import parse
from diffit.generation import generate
from diffit.model import build_model
from diffit.samples import image_shape, read_plan
from diffit.training.settings import RunConfig
from diffit.trajectory import record

pytest.importorskip("diffusers")

NETWORK = {"name": "latent-diffit", "size": 4, "channels": 4, "classes": 3, "patch": 2, "depth": 1,
           "width": 24, "heads": 2, "time_features": 16}  # fmt: skip
SMALL = ["--steps", "3", "--threads", "1", "--unit", "2", "--count", "4"]


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `checkpoint`, a model of latents, and `vae`, its autoencoder of factor 4."""
    folder = tmp_path_factory.mktemp("latent")
    make("kl", folder / "vae")
    make("kl", folder / "other", seed=1)
    make("tiny", folder / "tiny")
    make("dc", folder / "dc")
    save(folder / "checkpoint", folder / "vae")
    return folder


def save(checkpoint: Path, vae: Path) -> None:
    codec = identify(AutoencoderConfig(path=str(vae))).model_dump()
    content = {"model": {"network": NETWORK, "codec": codec}, "data": {"path": ""}}
    config = parse(RunConfig, content, source="test")
    source = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=source)
        for name, tensor in build_model(config.model).network.state_dict().items()
    }
    save_model(checkpoint, config, {"model": tensors}, {"images": 7})


def sample(latent: Path, out: Path, *options: str) -> int:
    return main(["sample", str(latent / "checkpoint"), "--out", str(out), *SMALL, *options])


def images(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "images").rglob("*.png")}


def test_latents_become_images(latent, tmp_path, capsys):
    assert sample(latent, tmp_path / "x", "--npz", "--trajectory") == 0
    with np.load(tmp_path / "x" / "samples.npz") as table:
        assert table["arr_0"].shape == (4, 16, 16, 3)
        assert table["arr_0"].std() > 0
    plan = read_plan(tmp_path / "x")
    drawn = generate(load(latent / "checkpoint"), range(4), labels=[0, 1, 2, 0],
                     settings=plan.sampling)  # fmt: skip
    first = np.asarray(Image.open(tmp_path / "x" / "images" / "000003.png"))
    assert np.array_equal(first, drawn[3].permute(1, 2, 0).numpy())
    assert len(plan.codec.weights_hash) == 64
    assert (tmp_path / "x" / "trajectory.png").exists()


def test_two_processes_decode_the_same_bytes(latent, tmp_path):
    assert sample(latent, tmp_path / "one") == 0
    assert sample(latent, tmp_path / "two", "--processes", "2") == 0
    assert images(tmp_path / "two") == images(tmp_path / "one")


def test_a_model_says_the_size_of_its_images(latent, capsys):
    assert image_shape(load(latent / "checkpoint")) == (3, 16, 16)
    assert main(["info", str(latent / "checkpoint")]) == 0
    printed = capsys.readouterr().out
    assert "codec" in printed
    assert f"autoencoder {latent / 'vae'} (kl), scale 0.18215, shift 0.0" in printed
    assert "16 x 16 pixels" in printed


def test_only_the_levels_of_the_picture_are_decoded(latent):
    model = load(latent / "checkpoint")
    seen = []
    decode = model.codec.decode
    model.codec.decode = lambda x: (seen.append(len(x)), decode(x))[1]  # type: ignore[method-assign]
    path = record(model, [0, 1], labels=0, levels=3)
    assert path.estimates.shape == (3, 2, 3, 16, 16)
    assert path.sigmas[0] == 80
    assert len(seen) == 4  # and what is drawn in the end


def test_an_autoencoder_that_has_moved_is_named_again(latent, tmp_path, capsys):
    shutil.copytree(latent / "vae", tmp_path / "vae")
    save(tmp_path / "checkpoint", tmp_path / "vae")
    assert sample(tmp_path, tmp_path / "before") == 0
    (tmp_path / "vae").rename(tmp_path / "moved")
    assert sample(tmp_path, tmp_path / "x") == 2
    error = capsys.readouterr().err
    assert "there is no autoencoder at" in error
    assert not (tmp_path / "x").exists()
    # The same weights in another place are no other plan.
    moved = str(tmp_path / "moved")
    assert sample(tmp_path, tmp_path / "before", "--codec", moved, "--count", "6") == 0
    assert "note" not in capsys.readouterr().err
    assert len(images(tmp_path / "before")) == 6


def test_an_autoencoder_whose_weights_have_changed_is_refused(latent, tmp_path, capsys):
    shutil.copytree(latent / "vae", tmp_path / "vae")
    save(tmp_path / "checkpoint", tmp_path / "vae")
    shutil.copytree(latent / "other", tmp_path / "vae", dirs_exist_ok=True)
    assert sample(tmp_path, tmp_path / "x") == 2
    assert "to use it all the same, name it with --codec" in capsys.readouterr().err
    assert sample(tmp_path, tmp_path / "x", "--codec", str(tmp_path / "vae")) == 0


def test_another_autoencoder_is_used_with_a_note_and_its_own_scale(latent, tmp_path, capsys):
    assert sample(latent, tmp_path / "x", "--codec", str(latent / "tiny")) == 0
    assert "is another autoencoder than" in capsys.readouterr().err
    plan = read_plan(tmp_path / "x")
    assert (plan.codec.kind, plan.codec.scale) == ("tiny", 1.0)
    assert sample(latent, tmp_path / "x") == 2  # the folder was begun with another one
    assert "was begun with codec " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--codec dc", "name an autoencoder of the same latents"),
        ("--codec nothing", "there is no autoencoder at"),
        ("--clip", "clip is for models of pixels"),
    ],
)
def test_what_cannot_be_decoded_is_refused_first(latent, tmp_path, capsys, options, sentence):
    words = [str(latent / word) if word == "dc" else word for word in options.split()]
    assert sample(latent, tmp_path / "x", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_model_of_pixels_takes_no_codec(latent, tmp_path, capsys):
    content = {"network": {**NETWORK, "channels": 3}}
    config = parse(RunConfig, {"model": content, "data": {"path": ""}}, source="test")
    network = build_model(config.model).network
    save_model(tmp_path / "checkpoint", config, {"model": network.state_dict()}, {"images": 7})
    assert sample(tmp_path, tmp_path / "x", "--codec", str(latent / "vae")) == 2
    assert "draws pixels, without an autoencoder; leave the codec out" in capsys.readouterr().err
