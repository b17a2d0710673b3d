"""Autoencoders: what diffusers computes from the same files; each refusal in a sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders import KINDS, make
from diffit.codecs import Autoencoder, AutoencoderConfig, PixelsConfig, build_codec
from diffit.codecs.autoencoder import identify, resolve
from diffit.codecs.source import INDEX, WEIGHTS, digest, weight_files
from diffit.config import parse
from diffit.errors import CheckpointError, ConfigError, UsageError
from diffit.fetch import cache_folder
from diffit.model import ModelConfig

pytest.importorskip("diffusers")

IMAGES = torch.randint(0, 256, (3, 3, 16, 24), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> a folder that nobody changes, and diffusers' own object."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = (folder, make(kind, folder))
    return found


@pytest.fixture
def folder(tmp_path):
    make("kl", tmp_path / "kl")
    return tmp_path / "kl"


def codec(path, **settings) -> Autoencoder:
    return Autoencoder(parse(AutoencoderConfig, {"path": str(path), **settings}, source="test"))


def change(folder: Path, **values) -> None:
    """Other values in an autoencoder's configuration; None leaves a key out."""
    content = json.loads((folder / "config.json").read_text()) | values
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_latents_and_images_are_those_of_diffusers(folders, kind):
    folder, theirs = folders[kind]
    ours = codec(folder)
    scale = theirs.config.scaling_factor
    encoded = theirs.encode(IMAGES / 127.5 - 1)
    z = {
        "kl": lambda: encoded.latent_dist.mode(),
        "tiny": lambda: encoded.latents,
        "dc": lambda: encoded.latent,
    }[kind]()
    x = ours.encode(IMAGES)
    torch.testing.assert_close(x, z * scale, rtol=1e-5, atol=1e-5)
    drawn = theirs.decode(x / scale).sample
    torch.testing.assert_close(ours.pixels(x), drawn, rtol=1e-5, atol=1e-5)
    assert (ours.decode(x).int() - (drawn * 127.5 + 128).clamp(0, 255).byte().int()).abs().max() < 2


@pytest.mark.parametrize(
    ("kind", "channels", "scale"), [("kl", 4, 0.18215), ("tiny", 4, 1.0), ("dc", 8, 0.41407)]
)
def test_an_autoencoder_says_itself_what_it_is(folders, kind, channels, scale):
    config = resolve(AutoencoderConfig(path=str(folders[kind][0])))
    assert (config.kind, config.channels, config.factor) == (kind, channels, 4)
    assert (config.scale, config.shift) == (scale, 0.0)


@torch.no_grad()
def test_moments_are_mean_and_deviation_before_any_scale(folders):
    folder, theirs = folders["kl"]
    posterior = theirs.encode(IMAGES / 127.5 - 1).latent_dist
    mean, std = codec(folder).moments(IMAGES).chunk(2, dim=1)
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(std, posterior.std, rtol=1e-5, atol=1e-6)
    assert (codec(folders["tiny"][0]).moments(IMAGES)[:, 4:] == 0).all()


def test_scale_and_shift_of_sixteen_channels(tmp_path):
    # The numbers of Stable Diffusion 3.
    make("kl", tmp_path, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609,
         use_quant_conv=False, use_post_quant_conv=False)  # fmt: skip
    ours = codec(tmp_path)
    mean = ours.moments(IMAGES)[:, :16]
    torch.testing.assert_close(ours.encode(IMAGES), (mean - 0.0609) * 1.5305)
    torch.testing.assert_close(ours.from_model(ours.to_model(mean)), mean)


def test_a_configuration_without_a_scale_means_that_of_stable_diffusion(folder):
    change(folder, scaling_factor=None, shift_factor=None)
    assert resolve(AutoencoderConfig(path=str(folder))).scale == 0.18215


def test_latents_may_be_normalised_channel_by_channel(folder):
    change(folder, scaling_factor=0.5, latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 8])
    ours = codec(folder)
    z = torch.ones(1, 4, 2, 2)
    assert ours.to_model(z)[0, :, 0, 0].tolist() == [0, -0.25, -0.25, -0.1875]
    assert resolve(parse(AutoencoderConfig, ours.config.model_dump(), source="test")) == ours.config


def test_a_user_may_set_another_scale(folders):
    assert resolve(AutoencoderConfig(path=str(folders["kl"][0]), scale=0.13025)).scale == 0.13025


def test_nothing_is_read_before_it_is_needed(tmp_path):
    ours = build_codec(AutoencoderConfig(path=str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match="there is no autoencoder at"):
        _ = ours.factor
    known = AutoencoderConfig(
        path=str(tmp_path / "nowhere"), kind="kl", channels=4, factor=8, scale=1, shift=0
    )
    assert build_codec(known).factor == 8


def test_diffusers_waits_until_an_image_goes_through():
    code = (
        "import sys, diffit.checkpoint\n"
        "from diffit.codecs import AutoencoderConfig, build_codec\n"
        "build_codec(AutoencoderConfig(path='x'))\n"
        "assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_image_does_not_depend_on_its_neighbours(folders):
    ours = codec(folders["kl"][0])
    x = ours.encode(IMAGES)
    assert torch.equal(ours.encode(IMAGES[1:2]), x[1:2])
    assert torch.equal(ours.decode(x[1:]), ours.decode(x)[1:])
    together = codec(folders["kl"][0], slice=3)
    torch.testing.assert_close(together.encode(IMAGES), x, rtol=1e-4, atol=1e-5)


def test_no_images_are_no_latents(folders):
    ours = codec(folders["kl"][0])
    assert ours.encode(IMAGES[:0]).shape == (0, 4, 4, 6)
    assert ours.decode(torch.zeros(0, 4, 4, 6)).shape == (0, 3, 16, 24)


def test_bf16_is_near_and_comes_back_in_single(folders):
    x, half = codec(folders["tiny"][0]).encode(IMAGES), codec(folders["tiny"][0], precision="bf16")
    y = half.encode(IMAGES)
    assert y.dtype == torch.float32
    assert 0 < (y - x).abs().max() < 0.05 * x.abs().max()
    assert half.decode(y.double()).dtype == torch.uint8


def test_rounding_down_cuts_fractions_off(folders):
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, down = (codec(folders["kl"][0], rounding=name) for name in ("nearest", "down"))
    exact = (near.pixels(x) * 127.5 + 127.5).clamp(0, 255)
    assert torch.equal(down.decode(x), exact.floor().byte())
    assert torch.equal(near.decode(x), (exact + 0.5).clamp(0, 255).byte())


def test_gradients_pass_through_the_decoder(folders):
    x = torch.zeros(1, 4, 4, 4, requires_grad=True)
    codec(folders["kl"][0]).pixels(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_several_weight_files_are_read_through_their_index(folder):
    expected = codec(folder).encode(IMAGES)
    tensors = list(load_file(folder / WEIGHTS).items())
    parts = {"a.safetensors": dict(tensors[:9]), "b.safetensors": dict(tensors[9:])}
    for name, part in parts.items():
        save_file(part, folder / name)
    table = {key: name for name, part in parts.items() for key in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))
    (folder / WEIGHTS).unlink()
    assert torch.equal(codec(folder).encode(IMAGES), expected)
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no b\.safetensors, which its .* lists"):
        codec(folder).encode(IMAGES)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="lists no safetensors files"):
        weight_files(str(folder))


def test_attention_by_its_old_names_is_read_too(folder):
    expected = codec(folder).encode(IMAGES)
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in load_file(folder / WEIGHTS).items():
        for present, before in new.items():
            key = key.replace(f".{present}.", f".{before}.")
        old[key] = tensor
    assert any(".query." in key for key in old)
    save_file(old, folder / WEIGHTS)
    assert torch.equal(codec(folder).encode(IMAGES), expected)


def test_weights_in_half_precision_are_computed_in_single(folder):
    half = {key: tensor.half() for key, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert codec(folder).module(torch.device("cpu")).quant_conv.weight.dtype == torch.float32


def test_the_weights_are_known_by_their_hash(folders, tmp_path):
    config = identify(AutoencoderConfig(path=str(folders["tiny"][0])))
    assert len(config.weights_hash) == 64
    make("tiny", tmp_path, seed=1)
    other = config.model_copy(update={"path": str(tmp_path)})
    sentence = r"is not that of this model \(.*\); to use it all the same, name it with --codec"
    with pytest.raises(CheckpointError, match=sentence):
        Autoencoder(other).decode(torch.zeros(1, 4, 4, 4))
    with pytest.raises(CheckpointError, match=sentence):
        identify(other)


def test_a_model_cannot_have_other_channels_than_its_codec(folders):
    network = {"name": "dit", "size": 4, "channels": 3, "width": 24, "depth": 1, "heads": 1}
    known = resolve(AutoencoderConfig(path=str(folders["kl"][0]))).model_dump()
    with pytest.raises(ConfigError, match=r"network\.channels is 3, but the latents of .* have 4"):
        parse(ModelConfig, {"network": network, "codec": known}, source="test")
    fits = parse(ModelConfig, {"network": {**network, "channels": 4}, "codec": known}, source="t")
    assert isinstance(fits.codec, AutoencoderConfig)
    assert isinstance(parse(ModelConfig, {"network": network}, source="t").codec, PixelsConfig)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scale": 0}, "scale 0.* must be more than 0"),
        ({"channels": 4, "scale": [1.0, 2.0]}, r"have 2 numbers, but codec\.channels is 4"),
        ({"scale": [1.0, 2.0]}, r"have 2 numbers, but codec\.channels is 4"),
        ({"tile": 64}, "tile is 64; it must be 0 or at least 128"),
        ({"slice": 0}, "slice is 0"),
        ({"precision": "fp16"}, "must be one of 'fp32', 'bf16'"),
        ({"factor": 8, "kind": "kl"}, r"codec\.factor is 8, but .* has 4; leave it out"),
        ({"kind": "dc"}, r"codec\.kind is dc, but .* has kl"),
    ],
)
def test_impossible_settings_are_refused(folders, settings, sentence):
    with pytest.raises((ConfigError, CheckpointError), match=sentence):
        _ = codec(folders["kl"][0], **settings).channels


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), "takes images of 3 channels, not 1"),
        (torch.zeros(1, 3, 18, 16, dtype=torch.uint8), "18 x 16; .* must be multiples of 4"),
        (torch.zeros(1, 3, 0, 16, dtype=torch.uint8), "0 x 16; .* must be multiples of 4"),
        (torch.zeros(1, 3, 16, 16), "must be uint8"),
    ],
)
def test_images_that_do_not_fit_are_refused(folders, images, sentence):
    with pytest.raises(ValueError, match=sentence):
        codec(folders["kl"][0]).encode(images)


def test_latents_that_do_not_fit_are_refused(folders):
    ours = codec(folders["kl"][0])
    with pytest.raises(ValueError, match=r"latents are \(B, 4, h, w\) .* not \(1, 3, 4, 4\)"):
        ours.decode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="latents to decode hold values that are not finite"):
        ours.decode(torch.full((1, 4, 4, 4), float("nan")))


def test_weights_that_make_no_finite_image_are_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["decoder.conv_out.bias"].fill_(float("nan"))
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match="not finite"):
        codec(folder).decode(torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"_class_name": "UNet2DModel"}, "is a UNet2DModel; autoencoders .* are AutoencoderKL, A"),
        ({"_class_name": None}, "is a thing without a _class_name"),
        ({"latent_channels": "four"}, "holds impossible values"),
        ({"latent_channels": 10**9}, "holds impossible values"),
        ({"scaling_factor": 0}, "holds impossible values"),
        ({"scaling_factor": None, "shift_factor": float("nan")}, "holds impossible values"),
        ({"latents_mean": [0] * 4, "latents_std": [1, 1, 0, 1]}, "holds impossible values"),
        ({"latents_mean": [0] * 3, "latents_std": [1] * 3}, "holds impossible values"),
        ({"block_out_channels": 7}, "holds impossible values"),
        ({"block_out_channels": [8] * 50}, "holds impossible values"),
        ({"layers_per_block": 10**9}, "holds impossible values"),
        ({"in_channels": 1}, "is for images of 1 channels, not for RGB"),
        ({"latent_channels": 8}, r"do not fit its configuration: '.*' is \["),
        ({"layers_per_block": 2}, "the weights of .* lack tensor"),
        ({"layers_per_block": 0}, "have the unknown tensor"),
        ({"norm_num_groups": 5}, "diffusers makes no AutoencoderKL of"),
        ({"down_block_types": ["What"] * 3}, "diffusers makes no AutoencoderKL of"),
    ],
)
def test_configurations_that_cannot_be_are_refused(folder, values, sentence):
    change(folder, **values)
    with pytest.raises(CheckpointError, match=sentence) as error:
        codec(folder).encode(IMAGES)
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused_by_name(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is damaged .* fetch it again"):
        codec(folder).encode(IMAGES)
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(whole)
    with pytest.raises(CheckpointError, match=rf"has no {WEIGHTS}; other formats are not read"):
        codec(folder).encode(IMAGES)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as JSON; fetch it again"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "holds no settings by name"),
        ("{" + " " * (1 << 20) + "}", "larger than 1 MiB"),
    ],
)
def test_a_damaged_configuration_is_refused(folder, text, sentence):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        resolve(AutoencoderConfig(path=str(folder)))


def test_what_is_no_autoencoder_is_refused_with_the_way_out(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"is no autoencoder: it has no config\.json; name a"):
        resolve(AutoencoderConfig(path=str(tmp_path)))
    (tmp_path / "model_index.json").write_text("{}")
    folder.rename(tmp_path / "vae")
    with pytest.raises(CheckpointError, match=r"that of a whole pipeline lies in .*/vae"):
        resolve(AutoencoderConfig(path=str(tmp_path)))
    file = tmp_path / "vae" / "config.json"
    with pytest.raises(CheckpointError, match=r"config\.json is a file; name a folder"):
        resolve(AutoencoderConfig(path=str(file)))
    with pytest.raises(CheckpointError, match="there is no autoencoder at ''; name a folder"):
        resolve(AutoencoderConfig(path=""))


@pytest.fixture
def no_network(hub_cache, monkeypatch):
    """Empty caches, and no connections."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return hub_cache


def test_a_hub_id_that_is_not_there_without_a_network(no_network):
    sentence = r"owner/vae is not in the cache .* \(HF_HUB_OFFLINE is set\); name a .* with --codec"
    with pytest.raises(CheckpointError, match=sentence):
        resolve(AutoencoderConfig(path="owner/vae"))


def test_a_hub_id_is_read_from_the_cache(no_network, folder):
    stored = no_network / "models--owner--model"
    commit = "0123456789012345678901234567890123456789"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    (stored / "snapshots" / commit).mkdir(parents=True)
    expected = codec(folder).encode(IMAGES)
    folder.rename(stored / "snapshots" / commit / "vae")
    assert torch.equal(codec("owner/model:vae").encode(IMAGES), expected)


def test_a_hub_id_is_fetched_once(hub, folder):
    expected = codec(folder).encode(IMAGES)
    hub.add("owner/model", folder.parent)
    first = codec("owner/model:kl")
    assert torch.equal(first.encode(IMAGES), expected)
    hub.requests.clear()
    assert torch.equal(codec("owner/model:kl").encode(IMAGES), expected)
    assert not hub.requests
    assert identify(AutoencoderConfig(path="owner/model:kl")).weights_hash == digest(
        [folder / WEIGHTS]
    )


def test_what_a_hub_repository_lacks_is_said(hub, folder):
    (folder.parent / "model_index.json").write_text("{}")
    (folder / WEIGHTS).unlink()
    hub.add("owner/model", folder.parent)
    with pytest.raises(CheckpointError, match="a whole pipeline lies in owner/model:vae"):
        resolve(AutoencoderConfig(path="owner/model"))
    with pytest.raises(CheckpointError, match=rf"owner/model:kl has no {WEIGHTS}; other formats"):
        codec("owner/model:kl").encode(IMAGES)
    with pytest.raises(CheckpointError, match="there is no folder owner/nothing here and no http"):
        resolve(AutoencoderConfig(path="owner/nothing"))


def test_a_hub_id_may_stand_in_the_folder_cache(no_network, folder):
    expected = codec(folder).encode(IMAGES)
    place = cache_folder() / "owner"
    place.mkdir(parents=True)
    folder.rename(place / "vae")
    assert torch.equal(codec("owner/vae").encode(IMAGES), expected)


def test_without_diffusers_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"pip install 'diffit-torch\[latent\]'"):
        codec(folders["kl"][0]).encode(IMAGES)
