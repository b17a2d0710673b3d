"""Sealed folders: whole or not at all, every damage found and named."""

import errno
import json

import pytest
import torch

from diffit import sealed
from diffit.errors import CheckpointError
from diffit.sealed import DamagedError, read_state, read_tensors, verify, write_sealed

TENSORS = {
    "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)},
    "optimizer": {"a/step": torch.tensor(3.0)},
}


def write(folder, **state):
    write_sealed(folder, config="model: {}\n", tensors=TENSORS, state={"images": 7, **state})
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "x")


def test_what_is_written_comes_back(folder):
    verify(folder)
    assert read_state(folder)["images"] == 7
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    for key, tensor in read_tensors(folder, "model").items():
        assert torch.equal(tensor, TENSORS["model"][key])


def test_tensors_that_are_views_of_others_are_written_too(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    write_sealed(
        tmp_path / "x", config="", tensors={"model": {"a": base.t(), "b": base[0]}}, state={}
    )
    assert torch.equal(read_tensors(tmp_path / "x", "model")["a"], base.t())


def test_an_old_folder_is_replaced_as_a_whole(folder):
    write(folder, images=8)
    assert read_state(folder)["images"] == 8
    assert [p.name for p in folder.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_a_flipped_bit_is_found_and_named(folder, name, where):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[int(where * len(data)) if where > 0 else where] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=f"is damaged: the checksum of {name} does not match"):
        verify(folder)


def test_every_flipped_byte_of_the_state_is_found(folder):
    path = folder / "state.json"
    data = path.read_bytes()
    for i in range(0, len(data), 7):
        if chr(data[i]).isspace():
            continue  # white space between the values carries nothing
        broken = bytearray(data)
        broken[i] ^= 1
        path.write_bytes(broken)
        with pytest.raises(DamagedError):
            read_state(folder)


def test_a_truncated_file_is_found(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedError, match=r"model\.safetensors has \d+ bytes instead of \d+"):
        verify(folder)


def test_a_missing_file_is_found(folder):
    (folder / "optimizer.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"optimizer\.safetensors is missing"):
        verify(folder)


def test_a_folder_of_another_format_is_refused_but_not_called_damaged(folder):
    state = json.loads((folder / "state.json").read_text())
    state["format"] = 2
    state["blake2b"] = sealed._digest(state)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="has format 2, but this version of diffit reads"):
        read_state(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}', "\x00", "[" * 100_000])
def test_a_state_that_is_none_is_refused(folder, text):
    (folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_state(folder)


def test_a_file_name_cannot_lead_out_of_the_folder(folder):
    state = read_state(folder)
    (folder.parent / "secret").write_text("x")
    state["files"]["../secret"] = {
        "bytes": 1, "blake2b": sealed.checksum(folder.parent / "secret"),
    }  # fmt: skip
    state["blake2b"] = sealed._digest(state)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DamagedError, match="is missing"):
        verify(folder)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_folder(folder, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sealed.os, "fsync", full)
    with pytest.raises(CheckpointError, match="x could not be written: No space left on device"):
        write(folder, images=8)
    monkeypatch.undo()
    verify(folder)
    assert read_state(folder)["images"] == 7
    assert [p.name for p in folder.parent.iterdir()] == ["x"]


def test_leftovers_of_killed_processes_are_cleared(folder):
    for name in (".y.part", ".z.old"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "model.safetensors").write_text("half")
    sealed.clear_leftovers(folder.parent)
    assert [p.name for p in folder.parent.iterdir()] == ["x"]
