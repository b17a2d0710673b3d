"""What holds for every network, and the sizes that the literature and the specification give."""

import copy

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from diffit.networks import NETWORKS, NetworkConfig, build_network
from diffit.networks.count import count_macs, count_parameters, count_time_parameters
from diffit.networks.diffit import DiffiTConfig
from diffit.networks.dimr import DiMRConfig
from diffit.networks.dit import DiTConfig
from diffit.networks.large_dit import LargeDiTConfig
from diffit.networks.latent_diffit import LatentDiffiTConfig
from diffit.networks.mdt import MDTConfig
from diffit.networks.shared import SIZES
from diffit.networks.uvit import UViTConfig
from diffit.nn.attention import record_attention
from diffit.nn.time_norm import TIME_NORMS

SMALL = {
    "diffit": {"size": 8, "channels": 3, "widths": (16, 32), "blocks": (1, 2), "time_width": 16},
    "latent-diffit": {"size": 8, "width": 32, "depth": 2, "heads": 4},
    "dit": {"size": 8, "width": 32, "depth": 2, "heads": 4},
    "uvit": {"size": 8, "width": 32, "depth": 3, "heads": 4, "time_mlp": True, "qkv_bias": True},
    "mdt": {"size": 8, "width": 32, "depth": 3, "decoder": 1, "heads": 4},
    "dimr": {"size": 8, "widths": (32, 16), "depths": (3, 4), "heads": 4},
    "large-dit": {"size": 8, "width": 32, "depth": 2, "heads": 4, "hidden_multiple": 8},
}
BLOCKS = {"diffit": 4, "uvit": 3, "mdt": 4, "dimr": 9}
"""How many blocks the small ones have, if not 2."""
NO_ATTENTION = {"mdt": 1, "dimr": 6}
"""How many of them attend to nothing: they act in masked training alone, or are convolutions."""
ABLATIONS = ["qkv", "bias", "mlp", "separate", "norm", "td-rms", "td-ln"]


def small(name, **changes):
    """A small network; ``name`` may end in ``:td-rms`` or another `time_into`."""
    name, _, into = name.partition(":")
    chosen = {"time_into": into} if into else {}
    if into and name == "uvit":
        chosen["time_mlp"] = False
    return NETWORKS[name][0](**SMALL[name] | {"classes": 3} | chosen | changes)


def randomised(config, seed=0):
    """A network none of whose weights is zero, so that everything acts."""
    torch.manual_seed(seed)
    network = build_network(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def masked(network, batch=3):
    """The keywords of masked training, for networks that have it."""
    if not hasattr(network, "choose_seen"):
        return {}
    share, noise = torch.rand(batch), torch.rand(batch, network.config.tokens)
    return {"seen": network.choose_seen(share, noise)}


def inputs(config, batch=3):
    torch.manual_seed(1)
    return torch.randn(batch, *config.shape), torch.rand(batch) * 4, torch.tensor([0, 1, 2][:batch])


HAS_TIME_INTO = [n for n, (config, _) in NETWORKS.items() if "time_into" in config.model_fields]
TIME_NORMED = [f"{n}:{kind}" for n in HAS_TIME_INTO for kind in TIME_NORMS]
"""Networks whose norms know the time, though they have another way of their own."""
each = pytest.mark.parametrize("name", [*NETWORKS, *TIME_NORMED])
EMBEDDING = [n for n, (config, _) in NETWORKS.items() if "time_embedding" in config.model_fields]
"""Those that turn the time into features of a chosen kind."""


@each
@pytest.mark.parametrize("learned", [False, True])
def test_output_has_the_shape_of_the_input_or_twice_its_channels(name, learned):
    config = small(name, learned_variance=learned)
    x, time, label = inputs(config)
    channels = config.channels * (2 if learned else 1)
    assert build_network(config)(x, time, label).shape == (3, channels, 8, 8)


@each
def test_rectangles_are_welcome(name):
    config = small(name, size=(8, 16))
    x, time, label = inputs(config)
    assert randomised(config)(x, time, label).shape == (3, config.channels, 8, 16)


@each
def test_no_label_is_the_null_class(name):
    config = small(name)
    network, (x, time, _) = randomised(config), inputs(config)
    null = network(x, time, torch.full((3,), config.classes))
    assert torch.equal(network(x, time), null)
    assert not torch.allclose(network(x, time, torch.zeros(3).long()), null, atol=1e-4)


@each
def test_a_network_without_classes_takes_no_label(name):
    config = small(name, classes=0)
    network, (x, time, _) = randomised(config), inputs(config)
    assert torch.equal(network(x, time, torch.zeros(3).long()), network(x, time))
    with pytest.raises(ValueError, match="no classes; give no label"):
        network(x, time, torch.ones(3).long())


@each
def test_noise_level_and_label_act(name):
    config = small(name)
    network, (x, time, label) = randomised(config), inputs(config)
    out = network(x, time, label)
    assert not torch.allclose(network(x, time + 0.5, label), out, atol=1e-4)
    assert not torch.allclose(network(x, time, label.flip(0)), out, atol=1e-4)


@each
def test_wrong_inputs_are_refused(name):
    config = small(name)
    network, (x, time, label) = build_network(config), inputs(config)
    with pytest.raises(ValueError, match=r"image is \d x 8 x 4; this network was built for"):
        network(x[..., :4], time, label)
    with pytest.raises(ValueError, match="no condition image"):
        network(x, time, label, x)
    with pytest.raises(ValueError, match="no augmentation label"):
        network(x, time, label, augment=torch.zeros(3, 9))


@each
def test_a_condition_image_acts_and_adds_weights_to_the_first_layers_alone(name):
    config, plain = small(name, condition_channels=2), small(name)
    network, (x, time, label) = randomised(config), inputs(config)
    image = torch.randn(3, 2, *config.shape[1:])
    out = network(x, time, label, image)
    assert out.shape == x.shape
    assert not torch.allclose(network(x, time, label, image.flip(0)), out, atol=1e-4)
    torch.testing.assert_close(network(x[:1], time[:1], label[:1], image[:1]), out[:1])
    ours, theirs = network.state_dict(), build_network(plain).state_dict()
    assert list(ours) == list(theirs)
    changed = [key for key in ours if ours[key].shape != theirs[key].shape]
    assert len(changed) == (2 if name.startswith("dimr") else 1)
    assert all(key.endswith(("patch.weight", "tokenizer.weight")) for key in changed)


@each
def test_a_condition_image_that_is_missing_or_of_another_shape_is_refused(name):
    config = small(name, condition_channels=2)
    network, (x, time, label) = build_network(config), inputs(config)
    with pytest.raises(ValueError, match=r"needs a condition image of 2 x 8 x 8"):
        network(x, time, label)
    for image, given in (
        (x[:, :1], "3 condition images are 1 x 8 x 8"),
        (x[:1, :2], "1 condition"),
    ):
        with pytest.raises(ValueError, match=f"{given}.*takes 2 x 8 x 8, one for each of 3"):
            network(x, time, label, image)


@each
def test_blocks_hold_most_of_the_weights(name):
    network = build_network(small(name))
    inside = sum(p.numel() for block in network.blocks() for p in block.parameters())
    assert inside > 0.6 * count_parameters(network)
    assert len(list(network.blocks())) == BLOCKS.get(name.partition(":")[0], 2)


@each
def test_state_dict_makes_the_same_network(name):
    config = small(name)
    network, twin = randomised(config), build_network(config)
    twin.load_state_dict(network.state_dict())
    x, time, label = inputs(config)
    assert torch.equal(twin(x, time, label), network(x, time, label))
    assert not [n for n, t in network.state_dict().items() if not t.is_floating_point()]


@each
def test_same_seed_same_network_same_output(name):
    config = small(name)
    x, time, label = inputs(config)
    first, second = (randomised(config)(x, time, label) for _ in range(2))
    assert torch.equal(first, second)


@each
def test_images_of_a_batch_do_not_meet(name):
    config = small(name)
    network, (x, time, label) = randomised(config), inputs(config)
    whole = network(x, time, label)
    for i in range(3):
        alone = network(x[i : i + 1], time[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], atol=1e-5, rtol=1e-4)


@each
@pytest.mark.parametrize("at", ["hidden", "branches"])
def test_dropout_follows_the_keys(name, at):
    config = small(name, dropout=0.4, dropout_at=at)
    network, (x, time, label) = randomised(config), inputs(config)
    keys = torch.tensor([11, 12, 13])
    dropped = network(x, time, label, keys=keys)
    assert not torch.allclose(dropped, network(x, time, label), atol=1e-4)
    again = network(x.flip(0), time.flip(0), label.flip(0), keys=keys.flip(0)).flip(0)
    torch.testing.assert_close(again, dropped, atol=1e-5, rtol=1e-4)


@each
def test_activation_checkpointing_changes_no_gradient(name):
    config = small(name, dropout=0.3)
    network, (x, time, label) = randomised(config), inputs(config)
    extra, gradients = masked(network), []
    for flag in (False, True):
        network.activation_checkpointing = flag
        network.zero_grad()
        network(x, time, label, keys=torch.arange(3), **extra).square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for plain, redone in zip(*gradients, strict=True):
        assert torch.equal(plain, redone)


@each
def test_bfloat16_autocast_trains(name):
    config = small(name)
    network, (x, time, label) = randomised(config), inputs(config)
    extra = masked(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, time, label, **extra)
    expected = network(x, time, label, **extra)
    assert (out.float() - expected).norm() < 0.05 * expected.norm()
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@each
def test_a_whole_network_in_bfloat16_runs(name):
    config = small(name)
    network, (x, time, label) = randomised(config).bfloat16(), inputs(config)
    out = network(x.bfloat16(), time, label)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@each
def test_recorded_attention_leaves_the_output(name):
    config = small(name)
    network, (x, time, label) = randomised(config), inputs(config)
    with torch.no_grad(), record_attention(network) as maps:
        explicit = network(x, time, label)
    torch.testing.assert_close(explicit, network(x, time, label), atol=1e-5, rtol=1e-4)
    kind = name.partition(":")[0]
    assert len(maps) == BLOCKS.get(kind, 2) - NO_ATTENTION.get(kind, 0)
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@each
def test_inference_sees_weights_that_were_trained_in_between(name):
    config = small(name)
    network, (x, time, label) = randomised(config), inputs(config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.05)
    with torch.no_grad():
        network(x, time, label)
    network(x, time, label).square().mean().backward()
    optimiser.step()
    expected = copy.deepcopy(network)(x, time, label)
    with torch.no_grad():
        torch.testing.assert_close(network(x, time, label), expected, atol=1e-5, rtol=1e-4)


@each
def test_every_weight_gets_a_gradient(name):
    config = small(name)
    network, (x, time, label) = randomised(config), inputs(config)
    every = getattr(network, "pyramid", lambda *given, **more: [network(*given, **more)])
    predictions = every(x, time, label, **masked(network))
    sum(prediction.square().sum() for prediction in predictions).backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("name", ["diffit", "latent-diffit"])
def test_ablations_are_networks_of_their_own(name):
    outputs = []
    for time_into in ABLATIONS:
        config = small(name, time_into=time_into)
        network, (x, time, label) = randomised(config), inputs(config)
        outputs.append(network(x, time, label))
        assert not torch.allclose(network(x, time + 0.5, label), outputs[-1], atol=1e-5)
    for i, first in enumerate(outputs):
        for second in outputs[:i]:
            assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("name", TIME_NORMED)
def test_norms_that_know_the_time_are_told_tau(name):
    config = small(name, tau_scale=0.5, tau_shift=-1.0)
    network, (x, time, label) = randomised(config), inputs(config)
    other = build_network(config.model_copy(update={"tau_scale": 1.0, "tau_shift": 0.0})).eval()
    other.load_state_dict(network.state_dict())
    assert config.tau == (0.5, -1.0)
    torch.testing.assert_close(other(x, 0.5 * time - 1, label), network(x, time, label))
    assert not torch.allclose(other(x, time, label), network(x, time, label), atol=1e-4)
    assert not [n for n, _ in network.named_parameters() if n.startswith("time.")]


@pytest.mark.parametrize("name", TIME_NORMED)
def test_one_time_for_all_images_is_their_own(name):
    config = small(name)
    network, (x, _, label) = randomised(config), inputs(config)
    level = torch.tensor([1.5])
    expected = network(x, level.repeat(3), label)
    torch.testing.assert_close(network(x, level.expand(3), label), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TIME_NORMS)
def test_augmentation_acts_without_a_time_token(kind):
    config = small(f"diffit:{kind}", augment=True)
    network, (x, time, label) = randomised(config), inputs(config)
    plain = network(x, time, label)
    assert torch.equal(network(x, time, label, augment=torch.zeros(3, 9)), plain)
    assert not torch.allclose(network(x, time, label, augment=torch.ones(3, 9)), plain, atol=1e-3)


@pytest.mark.parametrize("kind", TIME_NORMS)
def test_norms_that_know_the_time_replace_rms(kind):
    with pytest.raises(ValidationError, match=f"norm 'rms' does not go with time_into '{kind}'"):
        small("latent-diffit", time_into=kind, norm="rms")


@pytest.mark.parametrize("kind", TIME_NORMS)
def test_networks_whose_norms_know_the_time_may_have_the_parts_of_v2(kind):
    config = small(f"latent-diffit:{kind}", mlp="swiglu", position="rotary", qk_norm=True)
    network, (x, time, label) = randomised(config), inputs(config)
    assert network(x, time, label).isfinite().all()


@pytest.mark.parametrize("name", EMBEDDING)
@pytest.mark.parametrize("kind", ["dit", "positional", "fourier"])
def test_every_time_embedding_runs(name, kind):
    config = small(name, time_embedding=kind)
    network, (x, time, label) = randomised(config), inputs(config)
    assert not torch.allclose(network(x, time + 0.5, label), network(x, time, label), atol=1e-4)


def test_untrained_latent_networks_predict_zero():
    columns = ("latent-diffit", "dit", "mdt", "large-dit")
    for name in (*columns, "latent-diffit:td-rms", "dit:td-ln", "mdt:td-rms"):
        config = small(name)
        assert not build_network(config)(*inputs(config)).any()


LATENT = {"classes": 1000, "learned_variance": True}
FFHQ = {"size": 64, "widths": (128, 256, 256, 256), "window": 8}
PARAMETERS = [
    (LatentDiffiTConfig(**LATENT), 561_035_232),
    (LatentDiffiTConfig(**LATENT, size=64), 562_382_816),
    (LatentDiffiTConfig(**LATENT, depth=30), 600_906_752),
    (DiTConfig(**LATENT), 675_129_632 - 294_912),  # DiT counts its fixed position table
    (LargeDiTConfig(**LATENT), 609_836_576),
    (LargeDiTConfig(**LATENT, depth=32, width=3072), 4_237_824_032),
    (LargeDiTConfig(**LATENT, depth=32, width=4096), 7_293_819_936),
    (LargeDiTConfig(**LATENT, modulation_norm=True), 609_984_032),
    (DiffiTConfig(), 15_812_651),
    (DiffiTConfig(blocks=(4, 4, 4)), 28_633_043),
    (DiffiTConfig(**FFHQ, blocks=(1, 2, 2, 2)), 23_144_115),
    (DiffiTConfig(**FFHQ, blocks=(4, 4, 4, 4)), 44_160_499),
]


@pytest.mark.parametrize(("config", "count"), PARAMETERS, ids=lambda v: getattr(v, "name", v))
def test_networks_have_the_known_number_of_weights(config, count):
    with torch.device("meta"):
        assert count_parameters(build_network(config)) == count


XL_2R = {"classes": 1000}
TIME_PARAMETERS = [
    (DiMRConfig(**XL_2R), 662_400),
    (DiTConfig(time_into="td-rms"), 28 * 8 * 1152 + 4 * 1152),
    (DiTConfig(time_into="td-ln"), 28 * 16 * 1152 + 8 * 1152),
    (MDTConfig(time_into="td-rms"), 29 * 8 * 1152 + 4 * 1152),  # with the side block
    (UViTConfig(time_into="td-ln"), 21 * 16 * 1024 + 8 * 1024),
    (DiTConfig(), 28 * (6 * 1152**2 + 6 * 1152) + (256 + 3 * 1152) * 1152 + 4 * 1152),
    (LatentDiffiTConfig(), 28 * (3 * 1152**2 + 3 * 1152) + (256 + 1152) * 1152 + 2 * 1152),
]
"""The time norms of the branch heads and upsamplers of DiMR count too."""


@pytest.mark.parametrize(("config", "count"), TIME_PARAMETERS, ids=lambda v: getattr(v, "name", v))
def test_the_noise_level_costs_what_the_specification_says(config, count):
    with torch.device("meta"):
        assert count_time_parameters(build_network(config)) == count


@pytest.mark.parametrize(
    ("size", "millions", "gmacs"),
    [("S", 27.3, 6.05), ("B", 108.0, 22.98), ("L", 380.5, 80.62), ("XL", 561.0, 118.5)],
)
def test_sizes_cost_what_the_specification_says(size, millions, gmacs):
    config = LatentDiffiTConfig(**LATENT, **SIZES[size]._asdict())
    with torch.device("meta"):
        assert count_parameters(build_network(config)) / 1e6 == pytest.approx(millions, abs=0.05)
    assert count_macs(config) / 1e9 == pytest.approx(gmacs, abs=0.05)


def test_512_pixels_cost_524_gmacs():
    assert count_macs(LatentDiffiTConfig(**LATENT, size=64)) / 1e9 == pytest.approx(524.4, abs=0.05)


@pytest.mark.parametrize(
    ("depth", "width", "ternary", "gmacs"),
    [
        (16, 1536, 604.0, (119, 516)),
        (32, 3072, 4227.9, (941, 3918)),
        (32, 4096, 7281.3, (1676, 6907)),
    ],
)
def test_large_dit_costs_what_the_specification_of_terdit_says(depth, width, ternary, gmacs):
    config = LargeDiTConfig(**LATENT, depth=depth, width=width)
    with torch.device("meta"):
        blocks = build_network(config).blocks()
    layers = [m for block in blocks for m in block.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(layer.weight.numel() for layer in layers) / 1e6 == pytest.approx(ternary, abs=0.05)
    for size, expected in zip((32, 64), gmacs, strict=True):
        cost = count_macs(config.model_copy(update={"size": size}))
        assert cost / 1e9 == pytest.approx(expected, abs=1)


def test_a_configuration_survives_its_own_text():
    reader = TypeAdapter(NetworkConfig)
    for name in NETWORKS:
        config = small(name, size=(8, 16))
        assert reader.validate_python(config.model_dump(mode="json")) == config


REFUSED = [
    ("uvit", {"depth": 4}, "depth 4 is even; a U-ViT has one block in the middle"),
    (
        "uvit",
        {"time_into": "td-ln", "time_mlp": True},
        "time_mlp makes a token, but time_into 'td-ln' has none",
    ),
    ("uvit", {"width": 30}, "width 30 is no multiple of heads 4"),
    ("mdt", {"depth": 4}, "depth 4 without decoder 1 must be an even number of blocks"),
    ("mdt", {"decoder": 3}, "depth 3 without decoder 3 must be"),
    ("mdt", {"mask_ratio": 0.9}, "may leave none of the 16 patches; lower them"),
    ("latent-diffit", {"size": 9}, "size 9 x 9 is no multiple of patch 2"),
    ("dit", {"width": 30}, "width 30 is no multiple of heads 4"),
    ("dit", {"width": 6, "heads": 1}, "width 6 is no multiple of 4"),
    ("dit", {"time_embedding": "fourier", "time_features": 5}, "time_features 5 is odd"),
    ("diffit", {"blocks": (1,)}, "must have one number for each level"),
    ("diffit", {"size": 9}, "size 9 is no multiple of 2, as the 2 levels of widths need"),
    ("diffit", {"size": 12}, "window 4 does not divide the side 6 of level 1; choose a divisor"),
    ("diffit", {"heads": 3}, "must be multiples of heads 3"),
    ("diffit", {"time_features": 5}, "time_features 5 is odd"),
    ("dimr", {"depths": (3,)}, "must have one number for each branch"),
    ("dimr", {"size": 9}, "size 9 is no multiple of 2, the patch of the coarsest of 2 branches"),
    ("dimr", {"heads": 3}, "must start with a multiple of heads 3"),
    ("dimr", {"kernel": 4}, "kernel 4 is even"),
    ("dimr", {"mlp_ratio": 0.01}, "leaves width 16 no hidden unit"),
    ("large-dit", {"width": 12}, "heads of 3 channels, which turn in pairs; choose fewer heads"),
    ("large-dit", {"mlp_ratio": 0.01}, "mlp_ratio 0.01 leaves width 32 no hidden unit"),
    ("large-dit", {"size": 9}, "size 9 x 9 is no multiple of patch 2"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_impossible_shapes_are_refused(name, changes, message):
    with pytest.raises(ValidationError, match=message):
        small(name, **changes)


@pytest.mark.parametrize("name", ["dit", "mdt", "latent-diffit:norm"])
def test_a_norm_of_the_modulation_may_follow_it(name):
    config = small(name, modulation_norm=True)
    network, (x, time, label) = randomised(config), inputs(config)
    extra = masked(network)
    network(x, time, label, **extra).square().sum().backward()
    norms = {n: p for n, p in network.named_parameters() if "modulation_norm" in n}
    assert len(norms) >= 2
    assert all(p.grad.any() for p in norms.values())
    plain = build_network(small(name))
    width = config.width
    assert count_parameters(network) == count_parameters(plain) + len(norms) * 6 * width
    more = count_time_parameters(network) - count_time_parameters(plain)
    assert more == len(norms) * 6 * width


@pytest.mark.parametrize("name", ["dit:td-rms", "mdt:td-ln", "latent-diffit"])
def test_a_norm_of_the_modulation_needs_one(name):
    with pytest.raises(ValidationError, match="modulation_norm needs time_into 'norm'"):
        small(name, modulation_norm=True)
