"""Training on latents: exact, repeatable, and without the autoencoder."""

import shutil
import sys

import pytest
import torch

from autoencoders import make
from diffit import draws
from diffit.checkpoint import checkpoint_folder, load
from diffit.cli import main
from diffit.codecs import Autoencoder, AutoencoderConfig
from diffit.config import parse
from diffit.data import open_dataset
from diffit.data.layouts.convert import write_layout
from diffit.data.loader import Loader
from diffit.errors import ConfigError
from diffit.generation import generate
from diffit.model import build_model
from diffit.sealed import read_state
from diffit.training.inputs import draw_inputs
from diffit.training.loop import train
from diffit.training.pictures import draw_pictures
from diffit.training.prepare import complete, open_training_data
from diffit.training.settings import RunConfig
from latent_sets import cache, image_folder, values
from tiny import TRAIN

NETWORK = {"name": "latent-diffit", "size": 4, "channels": 4, "classes": 2, "patch": 2, "depth": 1,
           "width": 16, "heads": 2, "time_features": 16}  # fmt: skip


def settings(path, *, model=None, network=None, data=None, **changes) -> RunConfig:
    content = {
        "model": {"network": {**NETWORK, **(network or {})}, **(model or {})},
        "data": {"path": str(path), "flip": True, **(data or {})},
        "train": {**TRAIN, "ema": {"constant": [0.9]}, **changes},
        "sampling": {"sampler": "ddim", "steps": 2},
    }
    return parse(RunConfig, content, source="test")


def prepared(config):
    dataset = open_training_data(config)
    return complete(config, dataset), dataset


def sums(run, images=128):
    files = read_state(checkpoint_folder(run, images))["files"]
    return {name: note["blake2b"] for name, note in files.items() if name != "config.yaml"}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder of images, an autoencoder, and the cache of one by the other."""
    folder = tmp_path_factory.mktemp("real")
    make("kl", folder / "vae")
    image_folder(folder / "images")
    done = main(["data", "encode", str(folder / "images"), str(folder / "cache"), "--codec",
                 str(folder / "vae"), "--flip"])  # fmt: skip
    assert done == 0
    return folder


def test_clean_latents_are_drawn_from_their_posteriors(tmp_path):
    config, dataset = prepared(settings(cache(tmp_path / "c").path))
    model = build_model(config.model)
    batch = next(Loader(dataset, batch=6, seed=3, flip=True))
    numbers = batch.number.tolist()
    eps = draws.normal(3, numbers, "latent", (4, 4, 4))
    mean, std = batch.image.chunk(2, dim=1)
    clean = draw_inputs(batch, model, seed=3).clean
    assert torch.equal(clean, (mean + std * eps - 0.25) * 0.5)
    assert config.model.codec.path == "somewhere"


def test_latents_without_a_posterior_are_taken_as_they_are(tmp_path):
    config, dataset = prepared(settings(cache(tmp_path / "c", form="point").path))
    batch = next(Loader(dataset, batch=6, seed=3))
    clean = draw_inputs(batch, build_model(config.model), seed=3).clean
    assert torch.equal(clean, (batch.image - 0.25) * 0.5)


def test_the_cache_gives_what_the_autoencoder_would_give(real):
    config, latents = prepared(settings(real / "cache"))
    onfly, images = prepared(
        settings(
            real / "images", data={"flip": False},
            model={"codec": {"name": "autoencoder", "path": str(real / "vae")}},
        )
    )  # fmt: skip
    assert onfly.model.codec.weights_hash == config.model.codec.weights_hash
    batches = [next(Loader(data, batch=5, seed=1)) for data in (latents, images)]
    cached, fresh = (
        draw_inputs(batch, build_model(one.model), seed=1).clean
        for batch, one in zip(batches, (config, onfly), strict=True)
    )
    torch.testing.assert_close(cached, fresh, rtol=2e-3, atol=2e-3)  # stored in float16


def test_a_run_is_the_same_with_workers_and_resumes_bit_for_bit(tmp_path):
    path = cache(tmp_path / "c").path
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(settings(path), straight, quiet=True)
    train(settings(path, images=64), resumed, quiet=True)
    saved = settings(path, data={"workers": 2, "memory": 0})
    train(saved, resumed, resume=True, quiet=True)
    assert sums(resumed) == sums(straight)


def test_training_never_loads_the_autoencoder(real, tmp_path, monkeypatch):
    def refuse(self, device):
        raise AssertionError("the autoencoder was asked for")

    monkeypatch.setattr(Autoencoder, "module", refuse)
    moved = tmp_path / "cache"
    shutil.copytree(real / "cache", moved)
    assert train(settings(moved), tmp_path / "run", quiet=True).images == 128


def test_a_trained_model_draws_images(real, tmp_path):
    train(settings(real / "cache"), tmp_path / "run", quiet=True, on_snapshot=draw_pictures)
    (folder,) = (tmp_path / "run" / "snapshots").iterdir()
    assert {p.name for p in folder.iterdir()} == {"samples.png", "real.png", "beside.png"}
    model = load(tmp_path / "run")
    assert generate(model, [0, 1], labels=[0, 1]).shape == (2, 3, 16, 16)


def test_without_its_autoencoder_a_run_goes_on_without_pictures(tmp_path, capsys):
    config = settings(cache(tmp_path / "c").path, snapshot_every=32)
    assert train(config, tmp_path / "run", on_snapshot=draw_pictures).images == 128
    printed = capsys.readouterr().out
    assert printed.count("no pictures in this run: there is no autoencoder at 'somewhere'") == 1
    assert not (tmp_path / "run" / "snapshots").exists()


def test_an_autoencoder_that_was_moved_is_known_again(real, tmp_path):
    shutil.copytree(real / "vae", tmp_path / "elsewhere")
    codec = {"name": "autoencoder", "path": str(tmp_path / "elsewhere")}
    config, _ = prepared(settings(real / "cache", model={"codec": codec}))
    assert config.model.codec.path == str(tmp_path / "elsewhere")
    assert config.model.codec.weights_hash is not None


def codec(**changes):
    return {"model": {"codec": {"name": "autoencoder", "path": "somewhere", **changes}}}


@pytest.mark.parametrize(
    ("of_cache", "changes", "answer"),
    [
        ({"mirrored": False}, {}, "data.flip needs the latents of mirrored images"),
        ({}, {"data": {"augment": 0.1, "flip": False}}, "data.augment is for images"),
        ({}, {"data": {"flip": False}, "network": {"size": 8}}, "set --model.network.size 4"),
        ({}, {"network": {"channels": 8}}, "--model.network.channels 4"),
        ({}, {"network": {"classes": 3}}, "set --model.network.classes 2"),
        ({}, codec(scale=0.3), "model.codec.scale is 0.3, but"),
        ({}, codec(weights_hash="b" * 64), "model.codec.weights_hash is"),
        ({"pixels": "0..1"}, {}, "made of pixels in [0, 1], as EDM2 does it"),
    ],
)
def test_what_does_not_fit_a_cache_is_refused(tmp_path, of_cache, changes, answer):
    path = cache(tmp_path / "c", **of_cache).path
    with pytest.raises(ConfigError) as refusal:
        prepared(settings(path, **changes))
    assert answer in str(refusal.value)


def test_another_autoencoder_than_that_of_the_cache_is_refused(real, tmp_path):
    make("tiny", tmp_path / "other")
    path = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"holds another autoencoder than the one that made"):
        prepared(settings(real / "cache", **codec(path=path)))


def test_a_network_of_latents_without_latents_says_how_to_make_them(real):
    with pytest.raises(ConfigError, match=r"make a cache of them with `diffit data encode`"):
        prepared(settings(real / "images"))


def test_latents_of_another_project_need_their_autoencoder_named(tmp_path, real):
    theirs = tmp_path / "theirs"
    ours = cache(tmp_path / "c", mirrored=False, numbers=values(10) * 2.7)
    write_layout(ours, theirs, "repa", scale=1.0)
    with pytest.raises(ConfigError, match=r"does not say which autoencoder made it"):
        prepared(settings(theirs, data={"flip": False}))
    named = codec(path=str(real / "vae"))
    config, dataset = prepared(settings(theirs, data={"flip": False}, **named))
    assert config.model.codec == AutoencoderConfig(
        path=str(real / "vae"), kind="kl", channels=4, factor=4, scale=0.18215, shift=0.0
    )
    assert len(dataset) == 10


def test_a_cache_needs_no_diffusers_to_be_opened(tmp_path):
    import subprocess

    cache(tmp_path / "c")
    code = f"import sys, diffit.data; diffit.data.open_dataset({str(tmp_path / 'c')!r})[0]"
    checked = f"{code}; assert not {{'diffusers', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", checked], check=True)
    assert open_dataset(tmp_path / "c").codec["kind"] == "kl"
