"""Files of each family become models: what is inferred, recommended and certified."""

import argparse

import pytest
import torch

from convert.files import dit_network, recorded, v2_network, write, write_network
from diffit.convert import detect, from_file, to_reference
from diffit.convert.certificate import compare, widened
from diffit.convert.families import FAMILIES
from diffit.diffusion.formulation import DDPMConfig, build_formulation
from diffit.errors import CheckpointError
from diffit.networks import LatentDiffiTConfig, build_network


def test_every_argument_of_an_official_file_is_seen(tmp_path):
    _, state, meta = recorded("diffit")
    converted = from_file(write(tmp_path / "a.safetensors", state))
    network = converted.config.network
    args = meta["constructor"]
    assert (network.width, network.depth, network.heads, network.classes) == (
        args["hidden_size"], args["depth"], args["num_heads"], args["num_classes"],
    )  # fmt: skip
    assert network.size == args["input_size"]
    assert network.learned_variance
    assert converted.config.codec.path == "stabilityai/sd-vae-ft-ema"
    assert converted.config.codec.rounding == "down"


def test_index_buffers_of_32_bits_are_dropped_too(tmp_path):
    _, state, _ = recorded("diffit")
    state = {n: t.int() if t.dtype == torch.int64 else t for n, t in state.items()}
    assert from_file(write(tmp_path / "a.pt", state)).certificate.dropped == 2


def test_a_conversion_is_the_same_every_time(tmp_path):
    _, state, _ = recorded("diffit")
    first, second = (from_file(write(tmp_path / f"{i}.safetensors", state)) for i in range(2))
    assert first.certificate.model_copy(update={"file": ""}) == second.certificate.model_copy(
        update={"file": ""}
    )


@pytest.mark.parametrize("side", [8, 64])
def test_v2_files_need_their_size(tmp_path, side):
    network = v2_network(size=side)
    path = write_network(tmp_path / "v2.pt", network)
    with pytest.raises(CheckpointError, match="name it with --source-size, such as 256"):
        from_file(path, certify=False)
    converted = from_file(path, source_size=8 * side)
    assert converted.certificate.family == "diffit-v2"
    assert converted.certificate.comparison.float64_relative < 1e-12
    assert converted.config.network == network.config
    assert converted.sampling.guidance == (4.4 if side == 8 else 1.49)
    assert converted.sampling.guidance_channels is None
    for name, tensor in network.state_dict().items():
        assert torch.equal(converted.tensors[name], tensor), name


def test_v2_snapshots_say_what_they_are(tmp_path):
    names = [f"class {i}" for i in range(5)]
    state = {f"_orig_mod.{n}": t for n, t in to_reference(v2_network())[1].items()}
    snapshot = {"ema": state, "n_classes": 5, "resolution": 64, "class_names": names,
                "cur_nimg": 1000}  # fmt: skip
    torch.save(snapshot, tmp_path / "diffit-snapshot-000001-inference.pt")
    converted = from_file(tmp_path / "diffit-snapshot-000001-inference.pt")
    assert converted.config.network.size == 8
    assert converted.config.class_names == tuple(names)
    assert converted.certificate.weights == "ema"


def test_training_checkpoints_of_dit_are_read_with_their_arguments(tmp_path):
    state = to_reference(dit_network())[1]
    other = {name: tensor + 1 for name, tensor in state.items()}
    content = {"model": other, "ema": state, "opt": {"state": {}, "param_groups": []},
               "args": argparse.Namespace(num_classes=5, image_size=64)}  # fmt: skip
    torch.save(content, tmp_path / "0050000.pt")
    best = from_file(tmp_path / "0050000.pt", heads=4)
    assert torch.equal(best.tensors["head.weight"], state["final_layer.linear.weight"])
    chosen = from_file(tmp_path / "0050000.pt", heads=4, weights="model")
    assert torch.equal(chosen.tensors["head.weight"], other["final_layer.linear.weight"])
    with pytest.raises(CheckpointError, match="no weights 'raw'; there are: model, ema"):
        from_file(tmp_path / "0050000.pt", weights="raw")


def test_heads_that_nothing_tells_must_be_named(tmp_path):
    path = write_network(tmp_path / "dit.pt", dit_network())
    with pytest.raises(CheckpointError, match="no published size has width 48; name it with"):
        from_file(path)
    assert from_file(path, heads=2, certify=False).config.network.heads == 2


def test_half_precision_is_kept(tmp_path):
    state = {n: t.bfloat16() for n, t in to_reference(v2_network())[1].items()}
    converted = from_file(write(tmp_path / "v2.safetensors", state), source_size=64)
    assert converted.tensors["head.weight"].dtype == torch.bfloat16
    assert converted.model().network.head.weight.dtype == torch.float32
    assert converted.certificate.comparison.float32_relative < 1e-4


def test_a_named_licence_replaces_that_of_the_family(tmp_path):
    _, state, _ = recorded("diffit")
    path = write(tmp_path / "a.safetensors", state)
    assert from_file(path, licence="mit", certify=False).card().licence == "mit"


def test_families_are_told_apart():
    for network in (dit_network(), dit_network(time_embedding="diffusers"), v2_network(),
                    build_network(LatentDiffiTConfig(size=8, width=48, depth=1, heads=4,
                                                     classes=2))):  # fmt: skip
        family, tensors, _ = to_reference(network)
        assert [f for f, module in FAMILIES.items() if module.recognises(tensors)] == [family]
    with pytest.raises(CheckpointError, match=r"of no family .* are called a\.weight, \.\.\."):
        detect(["a.weight"])


def test_the_certificate_sees_what_is_wrong():
    network = v2_network()
    family, state, args = to_reference(network)
    state = {name: tensor.clone() for name, tensor in state.items()}
    formulation = build_formulation(DDPMConfig())
    good = compare(network, FAMILIES[family], state, args, formulation)
    assert good.float64_relative < 1e-12
    network.column[1].attention.k_norm.weight[3] += 0.5
    with pytest.raises(CheckpointError, match=r"differs from the formulas of .*: nothing was"):
        compare(network, FAMILIES[family], state, args, formulation)


def test_a_network_is_as_before_after_running_in_float64():
    network = v2_network()
    x, time = torch.randn(1, 4, 8, 8), torch.tensor([3.0])
    before = {n: t.clone() for n, t in network.state_dict().items()}
    expected = network(x, time)
    with widened(network):
        assert network(x.double(), time).dtype == torch.float64
    assert torch.equal(network(x, time), expected)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
