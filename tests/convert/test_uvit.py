"""U-ViT with converted weights returns what the reference returned."""

import json

import pytest
import torch
from safetensors import safe_open

from conftest import FIXTURES
from diffit.convert import from_file, from_reference, to_reference, uvit
from diffit.convert.uvit import plain_forward
from diffit.errors import CheckpointError
from diffit.networks import build_network
from diffit.networks.uvit import UViTConfig
from diffit.training.presets import presets, read_config

PLACES = {
    "patch_embed": "patch",
    "in_blocks.0": "down.0",
    "in_blocks.0.attn": "down.0.attention",
    "in_blocks.0.mlp": "down.0.mlp",
    "mid_block": "middle",
    "out_blocks.0": "up.0",
    "out_blocks.1": "up.1",
    "norm": "norm",
    "decoder_pred": "head",
}
BEHIND = {"decoder_pred"}  # the reference drops the condition tokens one layer later


def read(variant=""):
    """Tensors, state dict and arguments of the recorded network or of a variant of it."""
    with safe_open(FIXTURES / "uvit_tiny.safetensors", "pt") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    args = json.loads(facts["constructor"])
    if variant:
        args = json.loads(facts["variants"])[variant]
        prefix = f"variant.{variant}."
        tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return tensors, state, args


@pytest.mark.parametrize("variant", ["", "uncond"])
def test_output_is_the_references(variant):
    tensors, state, args = read(variant)
    network = from_reference("uvit", state, args)
    with torch.no_grad():
        out = network(tensors["input.x"], tensors["input.timesteps"], tensors.get("input.y"))
    torch.testing.assert_close(out, tensors["output"], atol=2e-5, rtol=1e-5)


def test_every_recorded_layer_is_the_references():
    tensors, state, args = read()
    network = from_reference("uvit", state, args)
    recorded = {n.removeprefix("intermediate.") for n in tensors if n.startswith("intermediate.")}
    assert recorded == set(PLACES)
    outputs = {}
    for theirs, ours in PLACES.items():
        network.get_submodule(ours).register_forward_hook(
            lambda module, inputs, output, theirs=theirs: outputs.__setitem__(theirs, output)
        )
    with torch.no_grad():
        network(tensors["input.x"], tensors["input.timesteps"], tensors["input.y"])
    for name, output in outputs.items():
        expected = tensors[f"intermediate.{name}"]
        expected = expected[:, 2:] if name in BEHIND else expected
        torch.testing.assert_close(output, expected, atol=2e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("variant", ["", "uncond"])
def test_there_and_back_gives_the_same_tensors(variant):
    _, state, args = read(variant)
    family, tensors, arguments = to_reference(from_reference("uvit", state, args))
    assert family == "uvit"
    again = from_reference("uvit", tensors, arguments)
    assert again.config == from_reference("uvit", state, args).config
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensors[name], tensor), name


def test_the_last_row_may_be_a_class_like_the_others():
    _, state, args = read()
    network = from_reference("uvit", state, args | {"null_class": False})
    assert (network.config.classes, network.config.null_class) == (11, False)


def test_an_even_depth_of_the_reference_has_a_block_in_the_middle_too():
    config = from_reference("uvit", *read()[1:]).config
    assert config.depth == 5


def test_wrong_arguments_are_refused_in_a_sentence():
    _, state, args = read()
    with pytest.raises(CheckpointError, match="counts the row for no class"):
        from_reference("uvit", state, args | {"num_classes": 1})
    with pytest.raises(CheckpointError, match=r"lacks in_blocks\.2\.norm1\.weight and 23 more"):
        from_reference("uvit", state, args | {"depth": 6})
    with pytest.raises(CheckpointError, match="did you mean 'embed_dim'"):
        from_reference("uvit", state, args | {"embed_dims": 6})


def test_what_the_reference_cannot_be_is_refused():
    small = {"width": 16, "depth": 1, "heads": 2, "size": 4, "classes": 2}
    with pytest.raises(ValueError, match="no setting like learned_variance"):
        to_reference(build_network(UViTConfig(**small, learned_variance=True)))
    with pytest.raises(ValueError, match="no setting like time_into"):
        to_reference(build_network(UViTConfig(**small, time_into="td-rms")))
    with pytest.raises(ValueError, match="square images only"):
        to_reference(build_network(UViTConfig(**small | {"size": (4, 8)})))


def file_of(tmp_path, variant=""):
    path = tmp_path / "uvit.pth"
    torch.save(read(variant)[1], path)
    return path


@pytest.mark.parametrize("variant", ["", "uncond"])
def test_a_file_becomes_a_model_with_a_certificate(tmp_path, variant):
    _, state, args = read(variant)
    converted = from_file(file_of(tmp_path, variant), heads=4)
    assert converted.certificate.family == "uvit"
    assert converted.certificate.comparison.float64_relative < 1e-12
    assert converted.certificate.comparison.float32_relative < 1e-5
    assert converted.config.network == from_reference("uvit", state, args).config
    assert converted.licence.name == "mit"


def test_the_plain_formulas_give_the_recorded_output():
    tensors, state, args = read()
    x, time, label = (tensors[f"input.{name}"] for name in ("x", "timesteps", "y"))
    out = plain_forward(state, args, x.double(), time, label)
    torch.testing.assert_close(out.float(), tensors["output"], atol=2e-5, rtol=1e-5)


def test_heads_must_be_named_where_no_published_size_has_them(tmp_path):
    with pytest.raises(CheckpointError, match="no published U-ViT has width 48; name it with --he"):
        from_file(file_of(tmp_path))


def layout(config):
    """Shapes of the reference's tensors, without any tensor."""
    with torch.device("meta"):
        _, tensors, _ = to_reference(build_network(config))
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "preset",
    [name for name in presets() if name.startswith("uvit") and "deep" not in name],
)
def test_files_of_published_sizes_are_recognised_and_used_as_the_presets_say(preset):
    config = read_config(preset).model
    found = uvit.config(uvit.infer(layout(config.network), {}))
    assert found == config.network
    published = uvit.published(found)
    assert published.formulation == config.formulation
    assert published.sampling == read_config(preset).sampling


def test_condition_tokens_keep_their_place_when_the_grid_grows(tmp_path):
    before = from_file(file_of(tmp_path), heads=4, certify=False)
    after = from_file(file_of(tmp_path), heads=4, size=128, certify=False)
    assert after.config.network.size == 16
    table = after.tensors["position"]
    assert table.shape == (2 + 64, 48)
    assert torch.equal(table[:2], before.tensors["position"][:2])
    # Patch (0, 0) of the small grid is covered by four of the large one.
    first = table[2:].view(8, 8, 48)[:2, :2].mean((0, 1))
    assert (first - before.tensors["position"][2]).norm() < 0.5 * first.norm()


def test_a_checkpoint_folder_gives_its_averaged_weights(tmp_path):
    _, state, args = read()
    folder = tmp_path / "500000.ckpt"
    folder.mkdir()
    torch.save(state, folder / "nnet_ema.pth")
    torch.save({name: 2 * tensor for name, tensor in state.items()}, folder / "nnet.pth")
    for name in ("optimizer", "lr_scheduler", "step"):
        torch.save({"state": 1}, folder / f"{name}.pth")
    averaged = from_file(folder, heads=args["num_heads"], certify=False)
    raw = from_file(folder, heads=args["num_heads"], weights="nnet", certify=False)
    for name, tensor in averaged.tensors.items():
        torch.testing.assert_close(raw.tensors[name], 2 * tensor)
    assert (
        averaged.config
        == from_file(folder / "nnet_ema.pth", heads=args["num_heads"], certify=False).config
    )
    with pytest.raises(CheckpointError, match="no weights 'ema'; there are: nnet, nnet_ema"):
        from_file(folder, weights="ema")
    (folder / "nnet_ema.pth").rename(folder / "one.pth")
    (folder / "nnet.pth").rename(folder / "two.pth")
    with pytest.raises(CheckpointError, match="choose with --weights: one, two"):
        from_file(folder)
