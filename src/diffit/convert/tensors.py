"""A state dict against what it should be: every difference is said in one sentence."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.errors import CheckpointError


def check_tensors(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    *,
    derived: Mapping[str, Tensor],
) -> None:
    """CheckpointError unless ``state`` has the tensors of ``shapes`` and no others.

    Args:
        state: the tensors of a checkpoint.
        shapes: name and shape of each tensor that must be there.
        derived: tensors that follow from the configuration; where ``state`` has them, they must
            be equal.
    """
    missing = [name for name in shapes if name not in state]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {_first(missing)}; is it of another depth?")
    unknown = [name for name in state if name not in shapes and name not in derived]
    if unknown:
        raise CheckpointError(
            f"the checkpoint holds {_first(unknown)}, which this network does not have"
        )
    for name, shape in shapes.items():
        given = state[name]
        if tuple(given.shape) != tuple(shape):
            raise CheckpointError(
                f"{name} is {_product(given.shape)} in the checkpoint, "
                f"but {_product(shape)} by the arguments"
            )
        if not given.is_floating_point():
            raise CheckpointError(f"{name} holds {given.dtype}, not weights")
    for name, value in derived.items():
        if name in state and not torch.equal(state[name].cpu().to(value.dtype), value):
            raise CheckpointError(f"{name} differs from its definition; the checkpoint is damaged")


def as_shape(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` in the shape of ``like``.

    Where the sources have rows at the end that nothing reads, they are dropped, and zero again on
    the way back.
    """
    short = like.numel() - tensor.numel()
    flat = F.pad(tensor.flatten(), (0, short)) if short > 0 else tensor.flatten()[: like.numel()]
    return flat.view(like.shape)


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
