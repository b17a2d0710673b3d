"""Whether a checkpoint will fit on the disk, asked before it is written."""

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from diffit.errors import CheckpointError

BESIDE = 1 << 16
"""Bytes of settings, notes and names of tensors."""


def size_of(sets: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of a checkpoint of these tensors, all pieces of sharded ones counted."""
    tensors = (tensor for kept in sets.values() for tensor in kept.values())
    return BESIDE + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def refuse_little_room(run: Path, sets: Mapping[str, Mapping[str, Tensor]]) -> None:
    """CheckpointError, as from a full disk, unless a checkpoint of these tensors fits.

    A checkpoint is whole before older ones are removed, so that their room does not count.
    """
    needed, free = size_of(sets), shutil.disk_usage(run).free
    if free < needed:
        cause = OSError(
            errno.ENOSPC,
            f"a checkpoint takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free",
        )
        raise CheckpointError(f"{run} has no room: {cause.strerror}") from cause
