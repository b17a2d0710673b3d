"""Damaged, foreign and hostile files end in one sentence."""

import json
import struct
import zipfile

import pytest
import torch
from torch import nn

from convert.files import recorded, write
from diffit.convert import from_file
from diffit.convert.weights import read
from diffit.errors import CheckpointError


class Evil:
    def __reduce__(self):
        return print, ("this must never run",)


def refused(path, match, **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        from_file(path, certify=False, **options)
    assert "\n" not in str(caught.value)


def official(tmp_path, change=lambda state: None, suffix="safetensors"):
    _, state, _ = recorded("diffit")
    change(state)
    return write(tmp_path / f"weights.{suffix}", state)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 1, 100, 5000, 100_000, -1])
def test_cut_files(tmp_path, suffix, keep):
    path = official(tmp_path, suffix=suffix)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "is damaged, or no (safetensors )?file")


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "ckpt", "bin"])
def test_other_bytes(tmp_path, suffix):
    for i, content in enumerate(
        [b"hello", b"PK\x03\x04" + b"\0" * 100, b"\x80\x04K*.", b"\xff" * 9]
    ):
        path = tmp_path / f"{i}.{suffix}"
        path.write_bytes(content)
        refused(path, "is damaged, or no|holds a int, no table|could run code")


def test_a_header_that_claims_too_much(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused(path, "is damaged")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0" * 64)
    refused(path, "is damaged")


@pytest.mark.parametrize("old", [False, True])
def test_pickles_with_code_do_not_run(tmp_path, capsys, old):
    path = tmp_path / "evil.pt"
    torch.save({"model": Evil()}, path, _use_new_zipfile_serialization=not old)
    refused(path, "which could run code and are not loaded; ask for a safetensors file")
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=not old)
    refused(path, "could run code")
    assert capsys.readouterr().out == ""


def test_files_of_old_pytorch_are_read(tmp_path):
    _, state, _ = recorded("diffit")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert from_file(tmp_path / "old.pth", certify=False).certificate.mapped == 32


def test_archives_that_unpack_to_more_than_they_are(tmp_path):
    path = official(tmp_path, suffix="pt")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/bomb", b"\0" * (8 << 20))
    refused(path, "unpacks to .* bytes; files of PyTorch do not")


def test_archives_of_an_unknown_version(tmp_path):
    path = official(tmp_path, suffix="pt")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(bytes(content))
    refused(path, "is damaged, or no file of PyTorch")


def test_tensors_without_memory_of_their_own(tmp_path):
    torch.save({"x_embedder.proj.weight": torch.zeros(1).expand(1 << 20, 1 << 20)},
               tmp_path / "a.pt")  # fmt: skip
    refused(tmp_path / "a.pt", "holds no table of tensors, but x_embedder.proj.weight")


def test_what_is_no_table_of_tensors(tmp_path):
    for content, match in (
        ([1, 2], "holds a list, no table of tensors"),
        ({"epoch": 3, "loss": 0.1}, "holds no table of tensors, but epoch, loss"),
        ({}, "holds no table of tensors, but nothing"),
        ({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, "choose with --weights: a, b"),
    ):
        torch.save(content, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", match)


def test_wrong_paths(tmp_path):
    refused(tmp_path / "nowhere.pt", "does not exist; name a file of weights or a folder")
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", "is no file of weights; they end in .safetensors, .pt")
    refused(tmp_path, "is no folder of diffusers: it has no config.json")
    refused(official(tmp_path), "holds one set of weights; leave --weights ema out", weights="ema")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s["pos_embed"].fill_(float("nan")), "pos_embed holds values that are not fin"),
        (lambda s: s["blocks.0.mlp.fc1.bias"].fill_(float("inf")), "fc1.bias holds values that"),
        (lambda s: s.pop("blocks.1.mlp.fc1.bias"), "lacks blocks.1.mlp.fc1.bias; is it of anoth"),
        (lambda s: s.pop("final_layer.linear.weight"), "lacks final_layer.linear.weight; it is"),
        (lambda s: s.update(extra=torch.ones(1)), "holds extra, which this network does not"),
        (lambda s: s.update(pos_embed=s["pos_embed"].long()), "pos_embed holds torch.int64, not"),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(3)}), "weight is 3, which no"),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(0, 4, 2, 2)}), "which no netw"),
        (lambda s: s.update({"final_layer.linear.weight": torch.ones(17, 48)}), "gives 17 numbers"),
        (lambda s: s["blocks.0.attn.relative_position_index"].add_(1), "from its definition"),
    ],
)
def test_official_files_that_are_not_right(tmp_path, change, match):
    refused(official(tmp_path, change), match)


def test_a_wrong_family_is_refused(tmp_path):
    path = official(tmp_path)
    refused(path, "is not of family dit; leave --family out", family="dit")
    refused(path, "there is no family 'vit'", family="vit")


def test_nothing_is_read_before_it_is_used(tmp_path):
    """The tensors of a file share its pages: their memory is not counted twice."""
    source = read(official(tmp_path))
    assert source.tensors["pos_embed"].data_ptr() != 0
    assert source.weights == ""
