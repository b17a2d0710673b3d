"""Whether a checkpoint will fit on the disk."""

import errno
from types import SimpleNamespace

import pytest
import torch

from diffit.errors import CheckpointError
from diffit.training import room
from diffit.training.room import BESIDE, refuse_little_room, size_of

SETS = {"model": {"w": torch.zeros(1000, 250)}, "optimizer": {"step": torch.tensor(1.0)}}


def test_the_size_of_a_checkpoint_is_that_of_its_tensors():
    assert size_of(SETS) == BESIDE + 1_000_004


@pytest.mark.parametrize("free", [0, BESIDE + 1_000_003])
def test_a_disk_with_too_little_room_is_as_a_full_one(tmp_path, monkeypatch, free):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(CheckpointError, match="has no room: a checkpoint takes") as caught:
        refuse_little_room(tmp_path, SETS)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_a_disk_with_just_enough_room_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(
        room.shutil, "disk_usage", lambda _: SimpleNamespace(free=BESIDE + 1_000_004)
    )
    refuse_little_room(tmp_path, SETS)
