"""A tiny autoencoder in one file becomes a folder, whatever its numbers were kept in."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders import make
from diffit.codecs import Autoencoder, AutoencoderConfig
from diffit.codecs.source import WEIGHTS
from diffit.codecs.taesd import folder_from_file
from diffit.errors import CheckpointError

pytest.importorskip("diffusers")

IMAGES = torch.arange(3 * 16 * 16).reshape(1, 3, 16, 16).byte()


@pytest.fixture
def folder(tmp_path):
    make("tiny", tmp_path / "tiny", num_encoder_blocks=(1, 2, 3), num_decoder_blocks=(3, 2, 1),
         decoder_block_out_channels=(4, 4, 4), latent_channels=16)  # fmt: skip
    return tmp_path / "tiny"


def test_the_folder_computes_what_the_file_holds(folder, tmp_path):
    made = folder_from_file(folder / WEIGHTS, tmp_path / "made")
    ours, theirs = (Autoencoder(AutoencoderConfig(path=str(p))) for p in (made, folder))
    assert torch.equal(ours.encode(IMAGES), theirs.encode(IMAGES))
    assert torch.equal(ours.decode(ours.encode(IMAGES)), theirs.decode(ours.encode(IMAGES)))
    content = json.loads((made / "config.json").read_text())
    assert (content["num_encoder_blocks"], content["num_decoder_blocks"]) == ([1, 2, 3], [3, 2, 1])
    assert content["latent_channels"] == 16


def test_eight_bits_become_thirty_two(folder, tmp_path):
    tensors = {
        key: tensor.to(torch.float8_e4m3fn if tensor.ndim == 4 else tensor.dtype)
        for key, tensor in load_file(folder / WEIGHTS).items()
    }
    save_file(tensors, tmp_path / "fp8.safetensors")
    written = load_file(folder_from_file(tmp_path / "fp8.safetensors", tmp_path / "made") / WEIGHTS)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    for key, tensor in tensors.items():
        assert torch.equal(written[key], tensor.float())


def test_other_files_are_refused_and_leave_nothing_usable(folder, tmp_path):
    out = tmp_path / "made"
    with pytest.raises(CheckpointError, match="does not exist; name a safetensors file"):
        folder_from_file(tmp_path / "nothing.safetensors", out)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match="is no intact safetensors file"):
        folder_from_file(tmp_path / "text.safetensors", out)
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="it lacks the layers of its encoder"):
        folder_from_file(tmp_path / "a.safetensors", out)
    tensors = load_file(folder / WEIGHTS)
    tensors.pop("encoder.layers.1.conv.2.bias")
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"lack tensor 'encoder\.layers\.1\.conv\.2\.bias'"):
        folder_from_file(tmp_path / "part.safetensors", out)
    folder_from_file(folder / WEIGHTS, out)  # what was refused is not in the way
    with pytest.raises(CheckpointError, match="made exists already; name a new folder"):
        folder_from_file(folder / WEIGHTS, out)
