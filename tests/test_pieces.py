"""Tensors that lie in pieces in several files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from diffit.pieces import OFFSETS, PiecedTensors


def write(path, tensors, starts):
    places = {key: {"saved_offsets": start} for key, start in starts.items()}
    save_file(tensors, path, metadata={OFFSETS: json.dumps(places)})
    return path


def test_tensors_cut_along_any_dimension_are_put_together(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    first = write(
        tmp_path / "a.safetensors",
        {"model/w": whole[:, :2].contiguous(), "model/scale": torch.tensor(3.0), "other/w": whole},
        {"model/w": [0, 0], "model/scale": [], "other/w": [0, 0]},
    )
    second = write(
        tmp_path / "b.safetensors", {"model/w": whole[:, 2:].contiguous()}, {"model/w": [0, 2]}
    )

    found = PiecedTensors([first, second], prefix="model/")

    assert found.shapes == {"w": (4, 6), "scale": ()}
    assert len(found) == 2
    assert torch.equal(found["w"], whole)
    assert found["scale"] == 3


def test_files_without_places_hold_whole_tensors(tmp_path):
    save_file({"w": torch.ones(3, dtype=torch.int64)}, tmp_path / "a.safetensors")

    found = PiecedTensors([tmp_path / "a.safetensors"])

    assert found["w"].dtype == torch.int64
    with pytest.raises(KeyError):
        found["v"]


@pytest.mark.parametrize("start", [1, 3, 0], ids=["overlap", "gap", "the same twice"])
def test_pieces_that_make_up_no_tensor_are_refused(tmp_path, start):
    files = [
        write(tmp_path / "a.safetensors", {"w": torch.zeros(2)}, {"w": [0]}),
        write(tmp_path / "b.safetensors", {"w": torch.zeros(2)}, {"w": [start]}),
    ]
    with pytest.raises(ValueError, match="do not make up"):
        PiecedTensors(files)


def test_pieces_that_overlap_and_leave_a_gap_are_refused(tmp_path):
    starts = {"a": 0, "b": 1, "c": 4}  # six numbers over a length of six, number 3 missing
    files = [
        write(tmp_path / f"{name}.safetensors", {"w": torch.zeros(2)}, {"w": [start]})
        for name, start in starts.items()
    ]
    with pytest.raises(ValueError, match="do not make up"):
        PiecedTensors(files)


def test_pieces_of_other_dimensions_are_refused(tmp_path):
    files = [
        write(tmp_path / "a.safetensors", {"w": torch.zeros(2)}, {"w": [0]}),
        write(tmp_path / "b.safetensors", {"w": torch.zeros(2, 1)}, {"w": [2, 0]}),
    ]
    with pytest.raises(ValueError, match="different numbers of dimensions"):
        PiecedTensors(files)
