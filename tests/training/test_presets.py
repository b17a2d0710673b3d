"""Every preset parses, builds, and has the parameters that its first line states."""

import re

import pytest
import torch

from diffit.errors import ConfigError
from diffit.model import empty_model
from diffit.networks import build_network
from diffit.networks.count import count_macs, count_parameters
from diffit.nn.packed import TernaryPackedConfig
from diffit.training.prepare import complete, open_training_data
from diffit.training.presets import presets, read_config

NAMES = list(presets())

PUBLISHED = {
    "latent-diffit-xl-2-256": 561_035_232,
    "latent-diffit-xl-2-512": 562_382_816,
    "diffit-v2-xl-2-256": 560_651_744,
}
PLAIN = {
    "diffit-cifar10": 15_812_651,
    "diffit-cifar10-deep": 28_633_043,
    "diffit-ffhq64": 23_144_115,
    "diffit-ffhq64-deep": 44_160_499,
}
"""Without the augmentation label, which the paper's counts leave out."""


def parameters(network):
    with torch.device("meta"):
        return count_parameters(build_network(network))


def test_the_presets_are_all_there():
    sizes = [f"{k}-{s}-2-256" for k in ("latent-diffit", "dit") for s in ("s", "b", "l", "xl")]
    sizes += [f"latent-diffit-{s}-2-512" for s in ("s", "b", "l", "xl")]
    sizes += ["diffit-v2-xl-2-256"]
    small = [
        "digits-denoiser",
        "digits-restore",
        "diffit-cifar10-small",
        "diffit-digits",
        "diffit-digits-ternary",
        "diffit-patches",
        "latent-diffit-small-256",
        "patches-restore",
    ]
    sizes += [f"mdt-{s}-2-256" for s in ("s", "b", "l", "xl")]
    sizes += ["uvit-s-2-cifar10", "uvit-s-4-celeba64", "uvit-s-2-deep-256"]
    sizes += [f"uvit-{place}" for place in ("m-4-imagenet64", "l-4-imagenet64")]
    sizes += [f"uvit-{place}" for place in ("l-2-256", "h-2-256", "l-4-512", "h-4-512")]
    sizes += ["dimr-xl-2r-256", "dimr-g-2r-256", "dimr-xl-3r-512"]
    sizes += ["dimr-l-3r-imagenet64", "dimr-m-3r-imagenet64"]
    large = ("600m-256", "4.2b-256", "4.2b-512", "7b-256")
    sizes += [f"{kind}-{place}" for kind in ("large-dit", "terdit") for place in large]
    tiny = ["tiny-diffit", "tiny-latent-diffit", "tiny-dit", "tiny-uvit", "tiny-mdt", "tiny-dimr"]
    tiny += ["tiny-large-dit"]
    assert set(NAMES) == {*sizes, *PLAIN, *small, *tiny}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_the_parameters_that_it_states(name):
    config = read_config(name)
    stated = re.search(r"(\d+(?:\.\d)?) ([Mk]) param", presets()[name])
    unit = {"M": 1e6, "k": 1e3}[stated[2]]
    digits = 1 if "." in stated[1] else 0
    assert round(parameters(config.model.network) / unit, digits) == float(stated[1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_largest_models_have_the_published_parameters(name):
    assert parameters(read_config(name).model.network) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [
        ("uvit-s-2-cifar10", 44, None),
        ("uvit-s-2-deep-256", 58, None),
        ("uvit-m-4-imagenet64", 131, None),
        ("uvit-l-2-256", 287, 77),
        ("uvit-h-2-256", 501, 133),
    ],
)
def test_uvit_is_as_large_and_costs_as_much_as_published(name, millions, gmacs):
    network = read_config(name).model.network
    assert round(parameters(network) / 1e6) == millions
    if gmacs:
        assert count_macs(network) / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(
    ("name", "count", "gmacs"),
    [
        ("dimr-xl-2r-256", 505_046_408, 160.2),
        ("dimr-g-2r-256", 1_056_352_904, 331.1),
        ("dimr-xl-3r-512", 525_027_372, 206.1),
        ("dimr-l-3r-imagenet64", 283_716_729, 109.9),
        ("dimr-m-3r-imagenet64", 132_828_681, 53.5),
    ],
)
def test_dimr_is_as_large_and_costs_as_much_as_published(name, count, gmacs):
    network = read_config(name).model.network
    assert parameters(network) == count
    assert count_macs(network) / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions", "gigabytes"),
    [
        ("terdit-600m-256", 0.610, 0.175),
        ("terdit-4.2b-256", 4.238, 1.099),
        ("terdit-4.2b-512", 4.238, 1.099),
        ("terdit-7b-256", 7.295, 1.874),
    ],
)
def test_terdit_is_as_large_as_published_and_as_small_once_packed(name, billions, gigabytes):
    model = read_config(name).model
    assert parameters(model.network) / 1e9 == pytest.approx(billions, abs=0.0005)
    packed = empty_model(model.model_copy(update={"linear": TernaryPackedConfig()}))
    size = sum(tensor.nbytes for tensor in packed.network.state_dict().values())
    assert size / 1e9 == pytest.approx(gigabytes, abs=0.0006)
    assert size < 1.1e9 or not name.startswith("terdit-4.2b")


@pytest.mark.parametrize(
    ("name", "dit"), [("mdt-s-2-256", 33), ("mdt-b-2-256", 130), ("mdt-xl-2-256", 675)]
)
def test_mdt_is_a_dit_with_long_skips_and_a_side_block(name, dit):
    """The published figures of MDTv2 are those of DiT, 33, 130 and 675 million."""
    network = read_config(name).model.network
    width, grid = network.width, network.grid[0]
    skips = (network.depth + network.decoder) // 2 * (2 * width**2 + width)
    side = 18 * width**2 + 15 * width
    tables = (network.depth + 1) * network.heads * (2 * grid - 1) ** 2 + 2 * grid**2 * width
    more = skips + side + tables + width
    assert (parameters(network) - more) / 1e6 == pytest.approx(dit, abs=0.8)


@pytest.mark.parametrize("name", PLAIN)
def test_image_space_models_have_the_parameters_of_the_paper(name):
    network = read_config(name).model.network
    assert network.augment
    assert parameters(network.model_copy(update={"augment": False})) == PLAIN[name]


def test_the_small_one_is_small():
    assert parameters(read_config("diffit-cifar10-small").model.network) <= 7_500_000


@pytest.mark.parametrize(
    "name", ["diffit-digits", "diffit-patches", *(name for name in NAMES if "tiny" in name)]
)
def test_presets_with_built_in_data_fit_it(name):
    config = read_config(name)
    named = complete(config, open_training_data(config))
    assert len(named.model.class_names) == config.model.network.classes


@pytest.mark.parametrize("name", ["diffit-cifar10", "latent-diffit-xl-2-256"])
def test_presets_without_data_ask_for_it(name):
    with pytest.raises(ConfigError, match=r"data\.path is empty|works on latents"):
        open_training_data(read_config(name))


def test_a_name_that_is_none_gets_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'diffit-cifar10'"):
        read_config("difit-cifar10")
    with pytest.raises(ConfigError, match=r"faces\.yaml does not exist"):
        read_config("faces.yaml")
