"""DiMR with converted weights returns what the reference returned, layer by layer."""

import json

import pytest
import torch
from safetensors import safe_open

from conftest import FIXTURES
from diffit.convert import from_reference, to_reference
from diffit.errors import CheckpointError
from diffit.networks import DiMRConfig, build_network

CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def recorded():
    with safe_open(FIXTURES / "dimr_tiny.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        args = json.loads(file.metadata()["constructor"])
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return tensors, state, args


@pytest.fixture(scope="module")
def network(recorded):
    _, state, args = recorded
    return from_reference("dimr", state, args)


@torch.no_grad()
def test_every_branch_says_what_the_reference_says(recorded, network):
    tensors = recorded[0]
    given = tensors["input.x"], tensors["input.log_snr"], tensors["input.y"]
    coarse, fine = network.pyramid(*given)
    torch.testing.assert_close(coarse, tensors["output_stage.0"], **CLOSE)
    torch.testing.assert_close(fine, tensors["output"], **CLOSE)
    assert torch.equal(network(*given), fine)


@torch.no_grad()
def test_one_time_for_all_images_gives_the_same(recorded, network):
    tensors = recorded[0]
    time = tensors["uniform.log_snr"]
    for each in (time, time[:1].expand(len(time))):
        coarse, fine = network.pyramid(tensors["uniform.x"], each, tensors["uniform.y"])
        torch.testing.assert_close(coarse, tensors["uniform.output_stage.0"], **CLOSE)
        torch.testing.assert_close(fine, tensors["uniform.output"], **CLOSE)


PLACES = {
    "stage0.input_layer": "branches.0.position",
    "stage0.block0.first_branch": "branches.0.column.0.attention",
    "stage0.block0.mlp_branch": "branches.0.column.0.glu",
    "stage0.blocks.0": "branches.0.column.0",
    "stage0.blocks.2": "branches.0.column.2",
    "stage1.input_layer": "branches.1.position",
    "stage1.upsample": "branches.1.upsample",
    "stage1.block0.first_branch": "branches.1.column.0.conv",
    "stage1.block0.mlp_branch": "branches.1.column.0.glu",
    "stage1.blocks.0": "branches.1.column.0",
    "stage1.blocks.4": "branches.1.column.4",
}


@torch.no_grad()
def test_every_recorded_layer_is_the_references(recorded, network):
    tensors, outputs, hooks = recorded[0], {}, []
    names = {n.removeprefix("intermediate.") for n in tensors if n.startswith("intermediate.")}
    assert names == set(PLACES)
    for theirs, ours in PLACES.items():
        hook = lambda m, i, out, theirs=theirs: outputs.__setitem__(theirs, out)  # noqa: E731
        hooks.append(network.get_submodule(ours).register_forward_hook(hook))
    network(tensors["input.x"], tensors["input.log_snr"], tensors["input.y"])
    for hook in hooks:
        hook.remove()
    for name, out in outputs.items():
        expected = tensors[f"intermediate.{name}"]
        out = out.permute(0, 2, 3, 1) if out.ndim == 4 else out
        torch.testing.assert_close(out.reshape(expected.shape), expected, **CLOSE, msg=name)


@torch.no_grad()
def test_time_dependent_vectors_are_the_references(recorded, network):
    vector = network.branches[0].column[0].norm1.scale
    value = vector(recorded[0]["td.log_snr"] / 4)
    torch.testing.assert_close(value, recorded[0]["td.value"], **CLOSE)


def test_there_and_back_gives_the_same_tensors(recorded, network):
    _, state, args = recorded
    family, tensors, arguments = to_reference(network)
    assert (family, arguments) == ("dimr", args)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())


def test_the_published_layout_has_its_names():
    with torch.device("meta"):
        network = build_network(DiMRConfig(classes=1000))
    tensors = to_reference(network)[1]
    shapes = {
        "stages.0.input_layer.1.weight": (960, 4, 2, 2),
        "stages.1.input_layer.3.position_embeddings.weight": (1024, 480),
        "stages.0.class_embeds.weight": (1001, 960),
        "stages.1.upsample.1.kernel.weight": (1920, 38400),
        "stages.1.upsample.0.bias.nodecay_weight": (38400,),
        "stages.0.blocks.38.block1.query_key_value.weight": (2880, 960),
        "stages.1.blocks.20.block1.1.weight": (480, 1, 7, 7),
        "stages.1.skip_denses.9.weight": (480, 960),
        "stages.1.output_layer.2.weight": (4, 480, 3, 3),
    }
    assert {name: tuple(tensors[name].shape) for name in shapes} == shapes


def test_layer_norms_are_named_as_in_the_reference():
    with torch.device("meta"):
        network = build_network(DiMRConfig(classes=3, norm="td-ln", widths=(32, 16), depths=(3, 1)))
    _, tensors, args = to_reference(network)
    assert args["norm_type"] == "LN"
    assert "stages.0.blocks.0.block1.norm.weight.param0" in tensors
    assert "stages.0.blocks.0.block1.norm.bias.nodecay_bias" in tensors


def broken(args, **changes):
    with pytest.raises(CheckpointError) as caught:
        from_reference("dimr", {}, {**args, **changes})
    return str(caught.value)


def test_wrong_arguments_are_refused_in_a_sentence(recorded):
    args = recorded[2]
    first, second = args["stage_configs"]
    assert "norm_type 'RMSN' is none of TDRMSN, LN" in broken(args, norm_type="RMSN")
    assert "stage_configs is empty" in broken(args, stage_configs=[])
    assert "num_classes must be at least 2" in broken(args, num_classes=1)
    assert "unknown setting 'rotary'" in broken(args, rotary=True)
    assert "size 9 is no multiple of 2" in broken(
        args, stage_configs=[first, {**second, "max_height": 9}]
    )
    assert "stage 1 has final_kernel_size 1; this library knows DiMR with 3 there" in broken(
        args, stage_configs=[first, {**second, "final_kernel_size": 1}]
    )
    assert "stage 1 has hidden_dim 48" in broken(
        args, stage_configs=[first, {**second, "hidden_dim": 48}]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 0}, "a row for each class and one for no class"),
        ({"learned_variance": True}, "no learned variance"),
        ({"mlp_ratio": 1.01}, "no hidden units like those of branch 0"),
    ],
)
def test_what_the_reference_cannot_be_is_refused(changes, message):
    small = {"classes": 2, "widths": (32, 16), "depths": (1, 1), "size": 4}
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        to_reference(build_network(DiMRConfig(**{**small, **changes})))
