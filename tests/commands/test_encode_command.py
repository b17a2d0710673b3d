"""`diffit data encode`, `convert-latents` and `inspect` as a user runs them."""

import json

import numpy as np
import pytest

from autoencoders import make
from diffit.cli import main
from diffit.data import open_dataset
from diffit.data.images import read_image
from latent_sets import cache, image_folder

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    for kind in ("kl", "tiny"):
        make(kind, folder / kind)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    image_folder(tmp_path / "images")
    return tmp_path


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_a_folder_becomes_a_cache_that_says_what_it_is(place, vaes, capsys, kind):
    assert main(["data", "encode", "images", "out", "--codec", str(vaes / kind), "--flip"]) == 0
    printed = capsys.readouterr().out
    assert "out: 10 latents of 4 x 4 x 4, and as many mirrored" in printed
    assert "out/check.png: originals and decoded latents, PSNR" in printed
    assert read_image(place / "out" / "check.png").shape[0] == 3
    latents = open_dataset("out")
    assert latents.codec["path"] == str(vaes / kind)
    assert latents.codec["kind"] == kind
    assert len(latents.codec["weights_hash"]) == 64
    assert main(["data", "inspect", "out"]) == 0
    printed = capsys.readouterr().out
    assert "out: latents in the layout of diffit" in printed
    assert "class-0 (5), class-1 (5)" in printed


def test_the_cache_holds_what_the_autoencoder_gives(place, vaes):
    import torch

    from diffit.codecs import Autoencoder, AutoencoderConfig

    main(["data", "encode", "images", "out", "--codec", str(vaes / "kl"), "--dtype", "float32"])
    images, latents = open_dataset("images"), open_dataset("out")
    codec = Autoencoder(AutoencoderConfig(path=str(vaes / "kl")))
    for i in (0, 9):
        wanted = codec.moments(torch.from_numpy(images[i].image)[None])[0].numpy()
        assert np.allclose(latents[i].image, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["auto", "channels"])
def test_the_scale_of_a_new_autoencoder_is_computed(place, vaes, way):
    main(["data", "encode", "images", "out", "--codec", str(vaes / "kl"), "--scale", way])
    latents = open_dataset("out")
    found = latents.index.statistics
    if way == "auto":
        assert latents.codec["scale"] == pytest.approx(1 / found.overall_std)
        assert latents.codec["shift"] == 0
    else:
        assert latents.codec["scale"] == pytest.approx([1 / std for std in found.std])
        assert latents.codec["shift"] == pytest.approx(list(found.mean))


def test_latents_go_to_another_project_and_come_back(place, vaes, capsys):
    main(["data", "encode", "images", "out", "--codec", str(vaes / "kl"), "--flip"])
    capsys.readouterr()
    assert main(["data", "convert-latents", "out", "theirs", "--to", "mar", "--no-check"]) == 0
    printed = capsys.readouterr().out
    assert "theirs: 10 latents in the layout of mar" in printed
    assert "not kept: deviations are computed from log-variances" in printed
    assert main(["data", "convert-latents", "theirs", "back", "--codec", str(vaes / "kl"),
                 "--no-check"]) == 0  # fmt: skip
    assert open_dataset("back").facts.form == "mean-logvar"
    assert open_dataset("back").classes == ("class-0", "class-1")


def test_inspect_prints_json_of_any_layout(place, capsys):
    cache(place / "c")
    main(["data", "convert-latents", "c", "r", "--to", "repa", "--no-check"])
    capsys.readouterr()
    assert main(["data", "inspect", "r", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["layout"], said["images"], said["classes"]) == ("repa", 10, {"a": 5, "b": 5})


def test_inspect_names_a_damaged_shard(place, capsys):
    cache(place / "c")
    path = place / "c" / "latents-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["data", "inspect", "c"]) == 0
    assert "latents-00001.safetensors is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        (["encode", "images", "x", "--codec", "nowhere"], "there is no autoencoder at 'nowhere'"),
        (["encode", "nothing", "x", "--codec", "VAE"], "there is nothing to read at 'nothing'"),
        (["encode", "c", "x", "--codec", "VAE"], "c holds latents, and images are needed here"),
        (["encode", "images", "images", "--codec", "VAE"], "images exists already"),
        (["encode", "images", "x", "--codec", "VAE", "--size", "10"], "takes multiples of 4"),
        (["encode", "images", "x", "--codec", "VAE", "--scale", "much"], "--scale is 'much'"),
        (["encode", "images", "x"], "--codec must be given"),
        (["convert-latents", "nothing", "x"], "there is nothing to read at 'nothing'"),
        (["convert-latents", "images", "x"], "images holds no latents in a known layout"),
        (["convert-latents", "c", "x", "--to", "mars"], "did you mean 'mar'?"),
        (["convert-latents", "images", "x", "--from", "diffit"], "it has no latents.json"),
        (["convert-latents", "c", "images", "--to", "mar", "--no-check"], "exists already"),
        (["convert-latents", "c", "x", "--to", "edm2", "--no-check"], "pixels in [0, 1]"),
        (["pack", "c", "x.zip"], "c holds latents, and images are needed here"),
    ],
)
def test_mistakes_are_answered_in_one_line(place, vaes, capsys, args, answer):
    cache(place / "c")
    assert main(["data", *(str(vaes / "kl") if word == "VAE" else word for word in args)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("diffit: ")
    assert answer in printed
    assert printed.count("\n") == 1
    assert not (place / "x").exists()


def test_a_range_mismatch_is_said_by_the_command(place, capsys):
    from data.test_layouts import sd_like

    latents = cache(place / "c", count=40, per_shard=40, mirrored=False, pixels="0..1",
                    numbers=sd_like("0..1"))  # fmt: skip
    assert latents.facts.pixels == "0..1"
    assert main(["data", "convert-latents", "c", "e.zip", "--to", "edm2"]) == 0
    capsys.readouterr()
    assert main(["data", "convert-latents", "e.zip", "x", "--from", "repa"]) == 2
    assert "EDM2 and REPA differ in this" in capsys.readouterr().err
    assert main(["data", "convert-latents", "e.zip", "x"]) == 0
    assert open_dataset("x").facts.pixels == "0..1"
