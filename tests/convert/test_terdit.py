"""TerDiT with converted weights, masters or packed, returns what the reference returned."""

import pytest
import torch
from safetensors.torch import load_file

from conftest import FIXTURES
from convert.files import recorded
from diffit.convert import from_reference, terdit, to_reference
from diffit.convert.large_dit import build
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.diffusion.guidance import constant, paired_estimate
from diffit.diffusion.schedule import levels
from diffit.errors import CheckpointError
from diffit.networks import DiTConfig, build_network
from diffit.networks.large_dit import LargeDiTConfig
from diffit.nn.linears import use_linears_
from diffit.nn.norm import rms_normed
from diffit.nn.packed import PackedTernary, TernaryPackedConfig
from diffit.nn.swap import swap_linears_
from diffit.nn.ternary import TernaryConfig, TernaryLinear
from diffit.samplers.ddpm import ancestral_learned

FORMS = ["packed", "masters"]
PLACES = {
    "x_embedder": "patch",
    "t_embedder": "time",
    "y_embedder": "label",
    "layers.0.adaLN_modulation": "column.0.modulation",
    "layers.0.attention": "column.0.attention",
    "layers.0.feed_forward": "column.0.mlp",
    "layers.0": "column.0",
    "layers.1": "column.1",
    "final_layer": "head",
}
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def released(form):
    """Everything recorded, the tensors in the layout of a released or of a training checkpoint."""
    tensors, state, meta = recorded("terdit")
    if form == "masters":
        state |= {n.removeprefix("master."): t for n, t in tensors.items() if n[:7] == "master."}
    return tensors, state, meta


def read(form):
    tensors, state, meta = released(form)
    return tensors, from_reference("terdit", state, meta["constructor"]), meta


@pytest.mark.parametrize("form", FORMS)
def test_output_and_every_recorded_layer_are_the_references(form):
    tensors, network, _ = read(form)
    names = {n.removeprefix("intermediate.") for n in tensors if n.startswith("intermediate.")}
    assert names == set(PLACES)
    outputs = {}
    for theirs, ours in PLACES.items():
        network.get_submodule(ours).register_forward_hook(
            lambda module, inputs, output, theirs=theirs: outputs.__setitem__(theirs, output)
        )
    with torch.no_grad():
        out = network(tensors["input.x"], tensors["input.t"], tensors["input.y"])
    torch.testing.assert_close(out, tensors["output"], **TOLERANCE)
    modulation = outputs["layers.0.adaLN_modulation"]
    modulation.copy_(rms_normed(modulation, network.column[0].modulation_norm))
    for name, output in outputs.items():
        torch.testing.assert_close(output, tensors[f"intermediate.{name}"], **TOLERANCE, msg=name)
    assert outputs.keys() == names


def test_masters_and_packed_layers_compute_the_same():
    tensors, packed, _ = read("packed")
    masters = read("masters")[1]
    given = (tensors[f"input.{name}"] for name in "xty")
    x, time, label = given
    with torch.no_grad():
        one, other = packed(x, time, label), masters(x, time, label)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert torch.equal(tensors["output"], tensors["output_qat"])


@pytest.mark.parametrize("form", FORMS)
def test_guided_output_is_the_references(form):
    tensors, network, meta = read(form)
    with torch.no_grad():
        out = network(tensors["cfg.x"].repeat(2, 1, 1, 1), tensors["cfg.t"], tensors["cfg.y"])
    channels, scale = meta["cfg"]["guided_channels"], meta["cfg"]["cfg_scale"]
    main, reference = out[:2, :channels], out[2:, :channels]
    guided = reference + scale * (main - reference)
    expected = tensors["cfg.output"]
    torch.testing.assert_close(torch.cat([guided, guided]), expected[:, :channels], **TOLERANCE)
    torch.testing.assert_close(out[:, channels:], expected[:, channels:], **TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_a_guided_run_is_the_references(form):
    tensors, network, meta = read(form)
    row = build_formulation(DDPMConfig())
    label = tensors["sampling.y"][: len(tensors["sampling.z"])]
    settings = meta["sampling"]
    assert not settings["clip_denoised"]
    estimate = paired_estimate(
        Denoiser(network, row).estimate, label, null=10,
        weight=constant(settings["cfg_scale"]), channels=3,
    )  # fmt: skip
    sigmas = levels("respaced", settings["steps"], row)
    draws = iter(tensors["sampling.noise"].double())
    x = row.prior_std(sigmas[0]) * tensors["sampling.z"].double()
    with torch.no_grad():
        x = ancestral_learned(estimate, x, sigmas, noise=lambda: next(draws))
    expected = tensors["sampling.output"]
    assert (x - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_the_plain_formulas_give_the_recorded_output(form):
    tensors, state, meta = released(form)
    x, time, label = (tensors[f"input.{name}"] for name in "xty")
    out = terdit.plain_forward(state, meta["constructor"], x.double(), time.float(), label)
    torch.testing.assert_close(out.float(), tensors["output"], **TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_gives_the_same_bytes(form):
    _, state, meta = released(form)
    family, tensors, args = to_reference(read(form)[1])
    assert (family, args) == ("terdit", meta["constructor"])
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("storage", ["2-bit", "base-3"])
def test_masters_packed_here_are_the_released_file_byte_for_byte(storage):
    network, config = read("masters")[1], TernaryPackedConfig(storage=storage)
    swap_linears_(network, lambda layer: PackedTernary.of(layer, config))
    tensors = to_reference(network)[1]
    for name, tensor in released("packed")[1].items():
        assert torch.equal(tensors[name], tensor), name


def test_scales_below_zero_keep_their_sign():
    for form in FORMS:
        network = read(form)[1]
        assert all(block.attention.value.scale < 0 for block in network.blocks())


@pytest.mark.parametrize("name", ["linear", "linear_nobias"])
def test_rows_of_the_reference_are_the_codes_of_its_weights(name):
    tensors = load_file(FIXTURES / "terdit_tiny.safetensors")
    weight, alpha = tensors[f"{name}.weight"], tensors[f"{name}.alphas"]
    state = {"a.weight": weight, "a.alphas": alpha}
    packed = {"a.weight": tensors[f"{name}.packed"], "a.alphas": alpha}
    expected = alpha.double() * tensors[f"{name}.ternary"].double()
    assert torch.equal(terdit._matrix(state, "a"), expected)
    assert torch.equal(terdit._matrix(packed, "a"), expected)


OTHERS = [
    ({"dim": 60, "n_heads": 20}, "make heads of 3 channels"),
    ({"n_kv_heads": 2}, "n_kv_heads 2; this library knows as many heads of keys and values"),
    ({"norm_eps": 1e-6}, "norm_eps 1e-06; this library knows 1e-05"),
    ({"num_classes": 0}, "num_classes must be at least 1"),
    ({"n_layers": 0}, "n_layers|depth is 0"),
    ({"rope_theta": 5e5}, "rope_theta"),
]


@pytest.mark.parametrize(("changes", "message"), OTHERS)
def test_other_arguments_are_refused(changes, message):
    _, state, meta = released("packed")
    with pytest.raises(CheckpointError, match=message):
        from_reference("terdit", state, meta["constructor"] | changes)


@pytest.mark.parametrize(
    ("args", "hidden"),
    [
        ({"dim": 4096}, 11008),
        ({"dim": 4096, "ffn_dim_multiplier": 1.3, "multiple_of": 1024}, 14336),  # of LLaMA 3
        ({"dim": 64, "multiple_of": 32}, 192),
        ({"dim": 64, "multiple_of": 1, "ffn_dim_multiplier": 0.7}, 118),
    ],
)
def test_hidden_units_are_rounded_as_in_the_reference(args, hidden):
    assert build(args, family="terdit", modulation_norm=True).hidden == hidden


SMALL = {"size": 8, "width": 32, "depth": 2, "heads": 4, "classes": 3, "hidden_multiple": 16}


def network_of(linear, **changes):
    network = build_network(LargeDiTConfig(**{**SMALL, "modulation_norm": True, **changes})).eval()
    use_linears_(network, linear)
    return network


def test_networks_that_the_release_cannot_be_are_refused():
    for linear, changes, message in (
        (TernaryConfig(scale="absmean"), {}, "one learned scale for each matrix"),
        (TernaryConfig(granularity="row"), {}, "one learned scale for each matrix"),
        (TernaryConfig(skip=("*.modulation",)), {}, "one learned scale for each matrix"),
        (TernaryConfig(), {"modulation_norm": False}, "no setting like modulation_norm"),
        (TernaryConfig(), {"size": (8, 16)}, "takes square images only"),
        (TernaryConfig(), {"classes": 0}, "takes models with classes only"),
        (TernaryConfig(), {"time_embedding": "fourier"}, "no setting like time_embedding"),
    ):
        with pytest.raises(ValueError, match=message):
            to_reference(network_of(linear, **changes))


def test_codes_of_dense_layers_alone_refuse_others_by_name():
    network = build_network(DiTConfig(size=8, width=32, depth=1, heads=4, classes=3)).eval()
    use_linears_(network, TernaryConfig(scale="absmean"))
    with pytest.raises(ValueError, match=r"dense linear layers alone, .* has TernaryLinear"):
        to_reference(network)


def test_kinds_of_layers_follow_from_what_the_file_holds():
    kinds = {"packed": PackedTernary, "masters": TernaryLinear}
    for form, kind in kinds.items():
        layers = [block.mlp.up for block in read(form)[1].blocks()]
        assert all(isinstance(layer, kind) for layer in layers)
