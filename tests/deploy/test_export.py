"""Models outside of Python: the same function, the same images."""

import builtins
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoders import make
from diffit.codecs import AutoencoderConfig
from diffit.deploy.export import export
from diffit.errors import UsageError
from diffit.generation import SamplingConfig, generate
from diffit.model import Model, ModelConfig, build_model
from diffit.training.presets import read_config
from tiny import tiny_run


def awake(config: ModelConfig) -> Model:
    """A model whose layers that begin with zeros have weights too."""
    model = build_model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    model.network.requires_grad_(False)
    return model


def test_the_sampler_beside_a_model_draws_the_same_images(tmp_path):
    model = awake(tiny_run().model)
    settings = SamplingConfig(sampler="heun", steps=6, guidance=1.5)
    made = export(model, tmp_path / "out", settings=settings)

    assert made.errors["denoiser"] <= 1e-5
    assert set(made.files) == {"denoiser.onnx", "sample.py"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, tmp_path / "out" / "sample.py", "--seed", "5", "--count", "3",
               "--label", "7", "--out", tmp_path / "drawn"]  # fmt: skip
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    ours = generate(model, [5, 6, 7], labels=7, settings=settings)
    for seed, image in zip((5, 6, 7), ours.numpy(), strict=True):
        theirs = np.asarray(Image.open(tmp_path / "drawn" / f"{seed:06d}.png")).astype(int)
        assert np.abs(theirs - image[0]).max() <= 1


@pytest.mark.parametrize("preset", ["tiny-latent-diffit", "tiny-dit", "tiny-dimr"])
def test_other_networks_give_what_they_give(tmp_path, preset):
    made = export(awake(read_config(preset).model), tmp_path / "out")
    assert made.errors["denoiser"] <= 1e-5


def test_an_exported_program_of_pytorch_holds_no_pickle(tmp_path):
    model = awake(read_config("tiny-dit").model)
    made = export(model, tmp_path / "out", kind="torch")

    assert made.errors["denoiser"] <= 1e-6
    file = tmp_path / "out" / "denoiser.pt2"
    with zipfile.ZipFile(file) as archive:
        assert not [
            f for f in archive.infolist() if f.filename.endswith((".pt", ".pkl")) and f.file_size
        ]
    x, sigma = torch.randn(5, *model.shape), torch.full((5,), 0.7, dtype=torch.float64)
    label = torch.arange(5) % model.classes
    found = torch.export.load(file).module()(x=x, sigma=sigma, label=label)
    torch.testing.assert_close(found, model.denoiser(x, sigma, label))


def test_half_precision_halves_the_weights_and_leaves_the_model_as_it_is(tmp_path):
    model = awake(read_config("tiny-dit").model)
    made = export(model, tmp_path / "out", precision="fp16")

    assert 1e-6 < made.errors["denoiser"] <= 1e-2
    assert json.loads((tmp_path / "out" / "model.json").read_text())["precision"] == "fp16"
    assert model.denoiser.dtype == torch.float32


def test_a_latent_model_brings_its_decoder(tmp_path):
    make("kl", tmp_path / "kl")
    config = read_config("tiny-latent-diffit").model
    network = config.network.model_copy(update={"channels": 4})
    model = awake(config.model_copy(update={"network": network}))
    model.set_codec(AutoencoderConfig(path=str(tmp_path / "kl")))
    made = export(model, tmp_path / "out")

    assert made.errors.keys() == {"denoiser", "decoder"}
    assert made.errors["decoder"] <= 1e-4
    assert json.loads((tmp_path / "out" / "model.json").read_text())["decoder"] == "decoder.onnx"


def test_what_differs_by_more_than_allowed_is_not_written(tmp_path):
    with pytest.raises(UsageError, match=r"differs from PyTorch by .* nothing was written"):
        export(
            awake(read_config("tiny-dit").model),
            tmp_path / "out",
            tolerance=1e-12,
            precision="fp16",
        )
    assert list(tmp_path.iterdir()) == []


def test_layers_with_kernels_of_their_own_are_refused(tmp_path):
    config = read_config("tiny-dit").model.model_copy(update={"linear": {"name": "int8"}})
    model = build_model(ModelConfig.model_validate(config.model_dump()))
    with pytest.raises(UsageError, match="int8 layers run on kernels of this library"):
        export(model, tmp_path / "out")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    whole = builtins.__import__

    def without(name, *rest):
        if name == "onnxscript":
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"needs the package onnxscript: pip install .*\[onnx\]"):
        export(build_model(tiny_run().model), tmp_path / "out")
