"""MDTv2 with converted weights returns what the reference returned, in full and masked."""

import json

import pytest
import torch
from safetensors import safe_open

from conftest import FIXTURES
from diffit.convert import from_file, from_reference, mdt, to_reference
from diffit.convert.mdt import SPARE, plain_forward
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.diffusion.guidance import guide_estimate, paired, power_cosine
from diffit.diffusion.schedule import levels, respace
from diffit.errors import CheckpointError
from diffit.networks import build_network
from diffit.networks.mdt import MDTConfig
from diffit.nn.embed import sincos_grid
from diffit.samplers.ddpm import ancestral_learned, ddim
from diffit.training.presets import read_config

ROW = build_formulation(DDPMConfig())
PLACES = {
    "x_embedder": "patch",
    "en_inblocks.0": "down.0",
    "en_inblocks.0.attn": "down.0.block.attention",
    "en_outblocks.0": "up.0",
    "en_outblocks.1": "up.1",
    "de_blocks.0": "decoder.0",
    "de_blocks.1": "decoder.1",
    "final_layer": "head",
}


def read():
    with safe_open(FIXTURES / "mdt_tiny.safetensors", "pt") as file:
        facts = {name: value for name, value in file.metadata().items() if value[0] == "{"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = {name: json.loads(value) for name, value in facts.items()}
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return tensors, state, facts


@pytest.fixture(scope="module")
def recorded():
    tensors, state, facts = read()
    return tensors, from_reference("mdt", state, facts["constructor"]), facts


def test_output_and_every_recorded_layer_are_the_references(recorded):
    tensors, network, _ = recorded
    names = {n.removeprefix("intermediate.") for n in tensors if n.startswith("intermediate.")}
    assert names == set(PLACES)
    outputs, hooks = {}, []
    for theirs, ours in PLACES.items():
        hook = network.get_submodule(ours).register_forward_hook(
            lambda module, inputs, output, theirs=theirs: outputs.__setitem__(theirs, output)
        )
        hooks.append(hook)
    with torch.no_grad():
        out = network(tensors["input.x"], tensors["input.t"], tensors["input.y"])
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(out, tensors["output"], atol=2e-5, rtol=1e-5)
    for name, output in outputs.items():
        expected = tensors[f"intermediate.{name}"]
        torch.testing.assert_close(output, expected, atol=2e-5, rtol=1e-5, msg=name)


def seen_in(tensors, network):
    share = tensors["masked.ratio_draw"].double().expand(3)
    return network.choose_seen(share, tensors["masked.noise"])


def test_masked_output_is_the_references(recorded):
    tensors, network, _ = recorded
    with torch.no_grad():
        out = network(
            tensors["input.x"], tensors["input.t"], tensors["input.y"], seen=seen_in(*recorded[:2])
        )
    torch.testing.assert_close(out, tensors["masked.output"], atol=2e-5, rtol=1e-5)


def test_images_that_show_different_numbers_of_patches_share_a_batch(recorded):
    tensors, network, _ = recorded
    x, time, label = (tensors[f"input.{name}"] for name in "xty")
    noise = tensors["masked.noise"]
    seen = network.choose_seen(torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64), noise)
    assert seen.sum(1).tolist() == [11, 9, 8]
    with torch.no_grad():
        out = network(x, time, label, seen=seen)
        for i in range(3):
            one = slice(i, i + 1)
            alone = network(x[one], time[one], label[one], seen=seen[one])
            torch.testing.assert_close(out[one], alone, atol=1e-5, rtol=1e-4)


def test_guided_output_is_the_references(recorded):
    tensors, network, facts = recorded
    guidance = facts["cfg"]
    time, label = tensors["cfg.t"], tensors["cfg.y"]
    with torch.no_grad():
        out = network(tensors["cfg.x"].repeat(2, 1, 1, 1), time, label)
    main, reference = out[:2, :3], out[2:, :3]
    progress = power_cosine(guidance["cfg_scale"], guidance["scale_pow"], ROW.progress)
    weight = progress(ROW.levels[time[:2]]).float().view(-1, 1, 1, 1)
    guided = reference + weight * (main - reference)
    torch.testing.assert_close(
        torch.cat([guided, guided]), tensors["cfg.output"][:, :3], atol=2e-5, rtol=1e-5
    )
    torch.testing.assert_close(out[:, 3:], tensors["cfg.output"][:, 3:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_guided_runs_are_the_references(recorded, method):
    tensors, network, facts = recorded
    settings = facts["sampling"]
    weight = power_cosine(settings["cfg_scale"], settings["scale_pow"], ROW.progress)
    steps, label = settings["steps"], tensors["sampling.y"][:2]
    assert respace(str(steps), 1000) == tensors["sampling.timestep_map"].tolist()
    sigmas = levels("respaced", steps, ROW)
    x = tensors["sampling.z"].double() * ROW.prior_std(sigmas[0])
    denoiser = Denoiser(network, ROW)
    if method == "ddim":
        end = ddim(paired(denoiser, label, null=10, weight=weight, channels=3), x, sigmas)
    else:
        estimate = guide_estimate(
            lambda x, sigma: denoiser.estimate(x, sigma, label), denoiser, weight=weight, channels=3
        )
        draws = iter(tensors["sampling.ddpm.noise"].double())
        end = ancestral_learned(estimate, x, sigmas, noise=lambda: next(draws))
    expected = tensors[f"sampling.{method}.output"]
    assert (end - expected).abs().max() < 1e-5 * expected.abs().max()


def test_untrained_position_tables_are_the_references(recorded):
    table = recorded[0]["reference.pos_embed"][0]
    torch.testing.assert_close(sincos_grid((4, 4), table.shape[1]), table, atol=1e-7, rtol=0)


def test_there_and_back_gives_the_same_tensors():
    _, state, facts = read()
    family, tensors, arguments = to_reference(from_reference("mdt", state, facts["constructor"]))
    assert (family, arguments) == ("mdt", facts["constructor"])
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        kept = slice(-SPARE) if name.endswith("bias_table") else slice(None)
        assert torch.equal(tensors[name][kept], tensor[kept]), name


def test_without_masks_the_side_block_stays_as_it_is():
    _, state, facts = read()
    network = from_reference("mdt", state, facts["constructor"] | {"mask_ratio": None})
    still = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert "mask_token" in still
    assert {name.partition(".")[0] for name in still} == {"mask_token", "side"}


def test_wrong_checkpoints_are_refused_in_a_sentence():
    _, state, facts = read()
    args = facts["constructor"]
    with pytest.raises(CheckpointError, match=r"lacks de_blocks\.2\.skip_linear\.weight and 25"):
        from_reference("mdt", state, args | {"decode_layer": 4})
    index = "en_inblocks.0.attn.rel_pos_bias.relative_position_index"
    with pytest.raises(CheckpointError, match="relative_position_index differs from its"):
        from_reference("mdt", state | {index: state[index].T}, args)
    with pytest.raises(CheckpointError, match="num_classes must be at least 1"):
        from_reference("mdt", state, args | {"num_classes": 0})


def test_what_the_reference_cannot_be_is_refused():
    small = {"width": 16, "depth": 3, "decoder": 1, "heads": 2, "size": 4, "classes": 2}
    small |= {"mask_ratio": 0.0}
    with pytest.raises(ValueError, match="no setting like dropout"):
        to_reference(build_network(MDTConfig(**small, dropout=0.1)))
    with pytest.raises(ValueError, match="no setting like time_into"):
        to_reference(build_network(MDTConfig(**small, time_into="td-rms")))
    with pytest.raises(ValueError, match="square images only"):
        to_reference(build_network(MDTConfig(**small | {"size": (4, 8)})))


def test_a_file_becomes_a_model_with_a_certificate(tmp_path):
    _, state, facts = read()
    torch.save(state, tmp_path / "mdt.pt")
    converted = from_file(tmp_path / "mdt.pt")
    assert converted.certificate.family == "mdt"
    assert converted.certificate.comparison.float64_relative < 1e-12
    assert converted.certificate.comparison.float32_relative < 1e-5
    # The weights do not tell how they were trained; a converted model trains without masks.
    expected = from_reference("mdt", state, facts["constructor"] | {"mask_ratio": None}).config
    assert converted.config.network == expected
    assert converted.licence.name == "unknown"


def test_the_plain_formulas_give_the_recorded_output():
    tensors, state, facts = read()
    x, time, label = (tensors[f"input.{name}"] for name in "xty")
    out = plain_forward(state, facts["constructor"], x.double(), time.float(), label)
    torch.testing.assert_close(out.float(), tensors["output"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", ["s", "b", "l", "xl"])
def test_files_of_published_sizes_are_recognised_and_used_as_the_presets_say(size):
    preset = read_config(f"mdt-{size}-2-256")
    with torch.device("meta"):
        _, tensors, _ = to_reference(build_network(preset.model.network))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = mdt.config(mdt.infer(shapes, {"mask_ratio": 0.3}))
    assert found == preset.model.network
    assert mdt.published(found).formulation == preset.model.formulation
    assert mdt.published(found).sampling == preset.sampling
