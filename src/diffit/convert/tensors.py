"""A state dict against what it should be, and from the source's names and shapes to ours and back.

Every difference is said in one sentence.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.convert.family import Names, Shapes
from diffit.errors import CheckpointError
from diffit.nn.embed import sincos_grid
from diffit.nn.rotary import axial_rotation, line_rotation
from diffit.nn.tiles import base3_to_tiles, rows_to_tiles, tiles_to_rows


def expected_shapes(ours: Mapping[str, Tensor], names: Names, changed: Shapes) -> Shapes:
    """Name in the source -> shape there, for all of ``ours`` that the source has."""
    found: dict[str, tuple[int, ...]] = {}
    for name in (name for name in ours if name in names):
        theirs = names[name]
        shape = tuple(changed.get(name, tuple(ours[name].shape)))
        if isinstance(theirs, str):
            found[theirs] = shape
        else:
            found |= dict.fromkeys(theirs, (shape[0] // len(theirs), *shape[1:]))
    return found


def to_ours(state: Mapping[str, Tensor], empty: Mapping[str, Tensor], names: Names) -> Any:
    """Our name -> the source's tensor in our shape; a view of it where nothing is joined.

    Bytes are ternary codes, in the source in the rows of TerDiT, here in tiles.
    """
    found = {}
    for name in (name for name in empty if name in names):
        theirs = names[name]
        if isinstance(theirs, str) and empty[name].dtype == torch.uint8:
            rows = state[theirs]
            found[name] = rows_to_tiles(rows, 4 * rows.shape[0], rows.shape[1], source=theirs)
            continue
        tensor = (
            state[theirs]
            if isinstance(theirs, str)
            else torch.cat([state[part] for part in theirs])
        )
        found[name] = as_shape(tensor.detach(), empty[name].shape)
    return found


def to_theirs(ours: Mapping[str, Tensor], names: Names, changed: Shapes) -> dict[str, Tensor]:
    """The inverse of `to_ours`."""
    found: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if name not in names:
            continue
        theirs, tensor = names[name], tensor.detach()
        shape = tuple(changed.get(name, tuple(tensor.shape)))
        if tensor.dtype == torch.uint8:
            size = 4 * shape[0], shape[1]
            tiles = tensor if tensor.ndim == 3 else base3_to_tiles(tensor, *size, source=name)
            tensor = tiles_to_rows(tiles, *size)
        tensor = as_shape(tensor, shape)
        if isinstance(theirs, str):
            found[theirs] = tensor
        else:
            found |= dict(zip(theirs, tensor.chunk(len(theirs)), strict=True))
    return found


def fixed_table(name: str, config: Any) -> Tensor:
    """A tensor of ours that follows from the configuration, for sources that store none."""
    if name == "position":
        return sincos_grid(config.grid, config.width)
    if name == "rotation":
        return line_rotation(config.tokens, config.width // config.heads)
    if name.endswith("rotary.rotation"):
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in config.grid)
        return axial_rotation(rows, columns, config.width // config.heads)
    raise CheckpointError(f"the checkpoint has nothing for {name} of the network")


def check_tensors(
    state: Mapping[str, Tensor],
    shapes: Shapes,
    *,
    derived: Mapping[str, Tensor],
    copies: Mapping[str, str],
    packed: Collection[str] = (),
) -> None:
    """CheckpointError unless ``state`` has the tensors of ``shapes`` and no others, all finite.

    Args:
        state: the tensors of a checkpoint.
        shapes: name and shape of each tensor that must be there.
        derived: tensors that follow from the configuration; where ``state`` has them, they must
            be equal.
        copies: tensors that repeat another one; they must be there, and equal to it.
        packed: those that hold codes in bytes.
    """
    missing = [name for name in [*shapes, *copies] if name not in state]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {_first(missing)}; is it of another depth?")
    known = {*shapes, *derived, *copies}
    unknown = [name for name in state if name not in known]
    if unknown:
        raise CheckpointError(
            f"the checkpoint holds {_first(unknown)}, which this network does not have"
        )
    for name, shape in shapes.items():
        _check_tensor(name, state[name], shape, packed=name in packed)
    for name, value in derived.items():
        if name in state and not torch.equal(state[name].cpu().to(value.dtype), value):
            raise CheckpointError(f"{name} differs from its definition; the checkpoint is damaged")
    for copy, original in copies.items():
        if not torch.equal(state[copy], state[original]):
            raise CheckpointError(
                f"{copy} differs from {original}; this network has one in place of both"
            )


def _check_tensor(name: str, tensor: Tensor, shape: Sequence[int], *, packed: bool) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise CheckpointError(
            f"{name} is {_product(tensor.shape)} in the checkpoint, "
            f"but {_product(shape)} by the arguments"
        )
    if packed and tensor.dtype == torch.uint8:
        return
    if packed or not tensor.is_floating_point():
        wanted = "packed weights" if packed else "weights"
        raise CheckpointError(f"{name} holds {tensor.dtype}, not {wanted}")
    if not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds values that are not finite; take another checkpoint")


def as_shape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor`` in another shape.

    Where the sources have rows at the end that nothing reads, they are dropped, and zero again on
    the way back.
    """
    count = math.prod(shape)
    if tensor.numel() == count:
        return tensor.reshape(tuple(shape))
    short = count - tensor.numel()
    flat = F.pad(tensor.flatten(), (0, short)) if short > 0 else tensor.flatten()[:count]
    return flat.view(tuple(shape))


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
