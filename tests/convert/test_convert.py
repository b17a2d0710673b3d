"""Networks with converted weights return what the reference implementations returned."""

import json

import pytest
import torch
from safetensors import safe_open

from conftest import FIXTURES
from diffit.convert import from_reference, to_reference
from diffit.convert.diffit import relative_index
from diffit.errors import CheckpointError
from diffit.networks import LatentDiffiTConfig, build_network
from diffit.networks.dit import DiTConfig
from diffit.nn.embed import sincos_grid

FILES = {"diffit": "diffit_latent_tiny.safetensors", "dit": "dit_tiny.safetensors"}
ATOL = {"diffit": 1e-5, "dit": 2e-5}


def read(family):
    with safe_open(FIXTURES / FILES[family], "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        args = json.loads(file.metadata()["constructor"])
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return tensors, state, args


def convert(family):
    tensors, state, args = read(family)
    return tensors, from_reference(family, state, args)


@pytest.mark.parametrize("family", FILES)
def test_output_is_the_references(family):
    tensors, network = convert(family)
    with torch.no_grad():
        out = network(tensors["input.x"], tensors["input.t"], tensors["input.y"])
    torch.testing.assert_close(out, tensors["output"], atol=ATOL[family], rtol=1e-5)


PLACES = {
    "diffit": {
        "t_emb": "time",
        "y_emb": "label",
        "block0.norm1": "column.0.norm1",
        "block0.attn": "column.0.attention",
        "block0.mlp": "column.0.mlp",
        "block0": "column.0",
        "block1": "column.1",
        "patch_embed": "patch",
        "final_layer": "head",
    },
    "dit": {
        "t_embedder": "time",
        "y_embedder": "label",
        "x_embedder": "patch",
        "blocks.0.adaLN_modulation": "column.0.modulation",
        "blocks.0.norm1": "column.0.norm1.norm",
        "blocks.0.attn": "column.0.attention",
        "blocks.0.mlp": "column.0.mlp",
        "blocks.0": "column.0",
        "blocks.1": "column.1",
        "final_layer": "head",
    },
}


@pytest.mark.parametrize("family", FILES)
def test_every_recorded_layer_is_the_references(family):
    tensors, network = convert(family)
    recorded = {n.removeprefix("intermediate.") for n in tensors if n.startswith("intermediate.")}
    assert recorded == set(PLACES[family])
    outputs = {}
    for theirs, ours in PLACES[family].items():
        network.get_submodule(ours).register_forward_hook(
            lambda module, inputs, output, theirs=theirs: outputs.__setitem__(theirs, output)
        )
    with torch.no_grad():
        network(tensors["input.x"], tensors["input.t"], tensors["input.y"])
    for name, output in outputs.items():
        torch.testing.assert_close(
            output, tensors[f"intermediate.{name}"], atol=ATOL[family], rtol=1e-5, msg=name
        )


@pytest.mark.parametrize("family", FILES)
def test_position_table_is_the_references(family):
    table = read(family)[0]["reference.pos_embed"][0]
    torch.testing.assert_close(sincos_grid((4, 4), table.shape[1]), table, atol=1e-7, rtol=0)


@pytest.mark.parametrize("family", FILES)
def test_there_and_back_gives_the_same_tensors(family):
    _, state, args = read(family)
    network = from_reference(family, state, args)
    again, tensors, arguments = to_reference(network)
    assert (again, arguments) == (family, args)
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensors[name], tensor), name


def test_index_of_a_two_by_two_grid():
    assert relative_index((2, 2)).tolist() == [
        [4, 3, 1, 0],
        [5, 4, 2, 1],
        [7, 6, 4, 3],
        [8, 7, 5, 4],
    ]


def broken(change, family="diffit"):
    _, state, args = read(family)
    change(state, args)
    with pytest.raises(CheckpointError) as caught:
        from_reference(family, state, args)
    return str(caught.value)


def test_wrong_checkpoints_are_refused_in_a_sentence():
    index = "blocks.1.attn.relative_position_index"
    assert broken(lambda s, a: s.pop("blocks.0.mlp.fc1.bias")) == (
        "the checkpoint lacks blocks.0.mlp.fc1.bias; is it of another depth?"
    )
    assert "blocks.2.attn.qkv.weight and 10 more tensors" in broken(lambda s, a: a.update(depth=3))
    assert "holds head.weight, which" in broken(
        lambda s, a: s.update({"head.weight": torch.ones(1)})
    )
    assert broken(lambda s, a: s.update({"pos_embed": torch.ones(1, 16, 44)})) == (
        "pos_embed is 1 x 16 x 44 in the checkpoint, but 1 x 16 x 48 by the arguments"
    )
    assert "relative_position_index differs from its definition" in broken(
        lambda s, a: s.update({index: s[index].T})
    )
    assert "holds torch.int64, not weights" in broken(
        lambda s, a: s.update({"pos_embed": s["pos_embed"].long()})
    )


def test_wrong_arguments_are_refused_in_a_sentence():
    assert "unknown setting 'hidden'; did you mean 'hidden_size'?" in broken(
        lambda s, a: a.update(hidden=3)
    )
    assert "num_classes must be at least 1" in broken(lambda s, a: a.update(num_classes=0))
    assert "width 48 is no multiple of heads 5" in broken(lambda s, a: a.update(num_heads=5))
    with pytest.raises(CheckpointError, match="did you mean 'diffit'"):
        from_reference("difit", {}, {})


def test_index_buffers_may_be_missing():
    tensors, state, args = read("diffit")
    state = {name: t for name, t in state.items() if "index" not in name}
    out = from_reference("diffit", state, args)(
        tensors["input.x"], tensors["input.t"], tensors["input.y"]
    )
    torch.testing.assert_close(out, tensors["output"], atol=1e-5, rtol=1e-5)


def test_without_label_dropout_there_is_no_null_row():
    _, state, args = read("dit")
    state["y_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"][:-1]
    network = from_reference("dit", state, args | {"class_dropout_prob": 0.0})
    x, time = torch.zeros(1, 4, 8, 8), torch.zeros(1)
    assert network(x, time, torch.tensor([9])).shape == (1, 8, 8, 8)
    with pytest.raises(ValueError, match="give a label"):
        network(x, time)


def test_what_the_reference_cannot_be_is_refused():
    small = {"width": 16, "depth": 1, "heads": 2, "size": 4, "classes": 2}
    with pytest.raises(ValueError, match="no setting like time_into"):
        to_reference(build_network(LatentDiffiTConfig(**small, time_into="mlp")))
    for kind in (LatentDiffiTConfig, DiTConfig):
        with pytest.raises(ValueError, match="no setting like time_into"):
            to_reference(build_network(kind(**small, time_into="td-rms")))
    with pytest.raises(ValueError, match="square images only"):
        to_reference(build_network(LatentDiffiTConfig(**small | {"size": (4, 8)})))


def test_the_published_layout_has_346_tensors():
    config = LatentDiffiTConfig(classes=1000, learned_variance=True)
    with torch.device("meta"):
        network = build_network(config)
    _, tensors, _ = to_reference(network)
    assert len(tensors) == 346
    assert tensors["blocks.27.attn.relative_position_bias_table"].shape == (961, 16)
