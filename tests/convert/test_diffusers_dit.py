"""DiT in the layout of diffusers, against diffusers' own transformer."""

import json

import pytest
import torch

from convert.files import dit_network, write_network
from diffit.checkpoint import load
from diffit.cli import main
from diffit.convert import from_file
from diffit.convert.export import export
from diffit.errors import CheckpointError
from diffit.model import ModelConfig, build_model

diffusers = pytest.importorskip("diffusers")


def transformer(**settings):
    torch.manual_seed(0)
    module = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=3,
        sample_size=8, patch_size=2, num_embeds_ada_norm=7, norm_num_groups=4, **settings,
    ).eval().requires_grad_(False)  # fmt: skip
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    first = module.transformer_blocks[0].norm1.emb.state_dict()
    for block in module.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first)
    return module


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers")
    module = transformer()
    module.save_pretrained(folder / "transformer")
    names = {str(i): f"class {i}" for i in range(7)}
    (folder / "model_index.json").write_text(json.dumps({"id2label": names}))
    return module, folder


def inputs():
    torch.manual_seed(1)
    return torch.randn(3, 4, 8, 8), torch.tensor([0, 417, 999]), torch.tensor([0, 3, 7])


def same(network, module):
    x, time, label = inputs()
    with torch.no_grad():
        ours = network(x, time.float(), label)
        other = module(x, timestep=time, class_labels=label).sample
    assert (ours - other).abs().max() < 1e-5 * other.abs().max()


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_the_converted_network_is_diffusers_own(tmp_path, eps):
    module = transformer(norm_eps=eps)
    module.save_pretrained(tmp_path)
    converted = from_file(tmp_path)
    same(converted.model().network, module)
    assert converted.certificate.comparison.float64_relative < 1e-12
    assert converted.certificate.dropped == 2 * 5  # embedders of the second and third block


def test_a_pipeline_folder_gives_names_and_its_way_of_sampling(theirs):
    _, folder = theirs
    converted = from_file(folder)
    assert converted.config.class_names[3] == "class 3"
    assert (converted.sampling.sampler, converted.sampling.steps) == ("ddim", 50)
    assert (converted.sampling.guidance, converted.sampling.guidance_channels) == (4.0, None)


def test_the_way_back_is_read_by_diffusers(theirs, tmp_path):
    module, folder = theirs
    assert main(["convert", str(folder), "--out", str(tmp_path / "ours")]) == 0
    words = ["convert", str(tmp_path / "ours"), "--to", "diffusers"]
    assert main([*words, "--out", str(tmp_path / "back")]) == 0
    again = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "back" / "transformer")
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.config.num_embeds_ada_norm == 7
    index = json.loads((tmp_path / "back" / "model_index.json").read_text())
    assert index["id2label"]["3"] == "class 3"
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "back", subfolder="scheduler")
    assert scheduler.alphas_cumprod[-1] == pytest.approx(4.04e-5, rel=1e-2)


def test_blocks_with_embedders_of_their_own_are_refused(tmp_path):
    module = transformer()
    module.transformer_blocks[2].norm1.emb.timestep_embedder.linear_1.bias[0] += 1
    module.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"blocks\.2\..* differs from transformer_blocks\.0"):
        from_file(tmp_path)


def test_the_same_weights_as_facebooks_code_computes_them(theirs):
    _, folder = theirs
    ours = from_file(folder, family="dit")
    assert ours.config.network.time_embedding == "dit"
    assert ours.certificate.comparison.float64_relative < 1e-12
    assert ours.sampling.guidance == 1.5


def test_a_dit_goes_to_diffusers_only_knowingly(tmp_path, capsys):
    path = write_network(tmp_path / "dit.pt", dit_network())
    words = ["convert", str(path), "--heads", "4", "--to", "diffusers", "--out"]
    assert main([*words, str(tmp_path / "no")]) == 2
    assert "--approximate writes it all the same" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert main([*words, str(tmp_path / "yes"), "--approximate"]) == 0
    said = capsys.readouterr().out
    assert "outputs change by up to" in said
    assert "put stabilityai/sd-vae-ft-ema into vae/" in said
    loaded = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "yes" / "transformer")
    assert torch.equal(loaded.proj_out_2.weight, dit_network().head.weight)


def test_what_diffusers_cannot_be_is_refused(tmp_path):
    def model(formulation, **network):
        shape = {"name": "dit", "size": 8, "width": 16, "depth": 1, "heads": 2, "classes": 2}
        shape |= {"time_embedding": "diffusers", **network}
        return build_model(ModelConfig(network=shape, formulation=formulation))

    for built, match in (
        (model({"name": "edm"}), "needs formulation ddpm"),
        (model({"name": "ddpm", "learned_variance": False, "schedule": "cosine"}), "linear sch"),
        (model({"name": "ddpm", "learned_variance": False, "time": "index1"}), "counts time"),
        (model({"name": "ddpm", "learned_variance": False}, classes=0), "classes and a null"),
        (model({"name": "ddpm", "learned_variance": False}, size=(8, 16)), "square images"),
    ):
        with pytest.raises(CheckpointError, match=match):
            export(built, tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_not_right(tmp_path):
    module = transformer()
    module.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"norm_type": "layer_norm"}))
    with pytest.raises(CheckpointError, match="norm_type of this transformer is 'layer_norm'"):
        from_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        from_file(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"lacks diffusion_pytorch_model\.safetensors"):
        from_file(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere")
