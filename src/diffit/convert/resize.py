"""A converted model for images of another size: its tables of positions, interpolated.

Weights know no size; what does are the position table, rotary tables and the position biases. All
are functions of a place or a displacement in the image, sampled once a token. A larger grid over
the same picture samples them more finely:

- A displacement of d tokens on the new grid of n' is one of d n / n' on the old grid of n. Biases
  are read there by cubic interpolation (Catmull-Rom), linear beyond the last entry. Displacements
  that both grids have keep their bias exactly, so that a doubled model, halved again, is the
  original one; a bias that is linear in the displacement stays so.
- The centre of new token a lies at (a + 1/2) n / n' - 1/2 of the old grid. With positions "scaled"
  sines and cosines are computed there, so that the network sees the same picture; with "plain" they
  are those of the new grid's own numbers, as networks trained at that size have them.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from diffit.config import parse
from diffit.convert.tensors import fixed_table
from diffit.errors import CheckpointError, ConfigError
from diffit.nn.embed import sincos_at, sincos_grid
from diffit.nn.rotary import axial_rotation

Positions = Literal["scaled", "plain"]
Grid = tuple[int, int]

LEARNED = ("uvit", "mdt")
"""Networks that train their position tables, which are therefore always interpolated."""


def resize(
    config: Any, tensors: Mapping[str, Tensor], size: int | Grid, *, positions: Positions = "scaled"
) -> tuple[Any, dict[str, Tensor]]:
    """Settings and weights of a latent DiffiT, DiT, U-ViT, MDT or Large-DiT for another size.

    Args:
        config: settings of the network.
        tensors: its state dict.
        size: new height and width of its input, in its own pixels or latents.
        positions: where the new tokens lie, see above.

    Raises:
        CheckpointError: the network cannot have that size.
    """
    if config.name not in ("latent-diffit", "dit", "large-dit", *LEARNED):
        raise CheckpointError(f"networks of kind {config.name!r} cannot be resized")
    settings = config.model_dump() | {"size": size}
    try:
        larger = parse(type(config), settings, source="the new size")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    before, after = config.grid, larger.grid
    changed = dict(tensors)
    for name, tensor in tensors.items():
        if name in ("position", "position_out"):
            changed[name] = _position(tensor, config, after, positions).to(tensor.dtype)
        elif name.endswith("position.table"):
            changed[name] = resize_bias(tensor, before, after).to(tensor.dtype)
        elif name == "rotation":
            if positions == "scaled":
                raise CheckpointError(
                    "large-dit numbers its tokens along one line, on which those of a finer grid "
                    "have no place between; take positions plain"
                )
            changed[name] = fixed_table(name, larger)
        elif name.endswith("rotary.rotation"):
            if not torch.equal(tensor, fixed_table(name, config)):
                raise CheckpointError("this model was resized before; start from the original")
            lines = _coordinates(before, after, positions)
            changed[name] = axial_rotation(*lines, config.width // config.heads)
    return larger, changed


def resize_bias(table: Tensor, before: Grid, after: Grid) -> Tensor:
    """A ((2h-1)(2w-1), heads) table of displacements on another grid over the same picture."""
    h, w = before
    square = table.mT.reshape(-1, 2 * h - 1, 2 * w - 1).double()
    places = [_displacements(n, m) for n, m in zip(before, after, strict=True)]
    square = interpolate(square.mT, places[0]).mT
    return interpolate(square, places[1]).flatten(1).mT.to(table.dtype).contiguous()


def interpolate(values: Tensor, places: Tensor) -> Tensor:
    """(..., n) values at fractional ``places``, between -1 and n, along the last axis: cubic.

    Exact at whole places, and for values that are linear in their place.
    """
    if values.shape[-1] == 1:
        return values.expand(*values.shape[:-1], len(places))
    first, last = values[..., :1], values[..., -1:]
    slope_in, slope_out = values[..., 1:2] - first, last - values[..., -2:-1]
    ends = [first - 2 * slope_in, first - slope_in], [last + slope_out, last + 2 * slope_out]
    padded = torch.cat([*ends[0], values, *ends[1]], dim=-1)
    base = places.floor().clamp(-1, values.shape[-1] - 1)
    t = (places - base).to(values.dtype)
    # Catmull-Rom: the cubic through the two neighbours with slopes of central differences.
    weights = [
        -t / 2 + t**2 - t**3 / 2,
        1 - 5 / 2 * t**2 + 3 / 2 * t**3,
        t / 2 + 2 * t**2 - 3 / 2 * t**3,
        -(t**2) / 2 + t**3 / 2,
    ]
    taps = [padded[..., (base + 1 + k).long()] for k in range(4)]
    return sum((w * tap for w, tap in zip(weights, taps, strict=True)), torch.zeros(()))


def _displacements(before: int, after: int) -> Tensor:
    """Where each of the 2 after - 1 new displacements lies among the 2 before - 1 old ones."""
    step = torch.arange(1 - after, after, dtype=torch.float64)
    return step * before / after + before - 1


def _centres(before: int, after: int) -> Tensor:
    """Where the centres of new tokens lie on the old grid."""
    return (torch.arange(after, dtype=torch.float64) + 0.5) * before / after - 0.5


def _coordinates(before: Grid, after: Grid, positions: Positions) -> tuple[Tensor, Tensor]:
    if positions == "plain":
        before = after
    rows, columns = (_centres(n, m) for n, m in zip(before, after, strict=True))
    return rows, columns


def _position(table: Tensor, config: Any, after: Grid, positions: Positions) -> Tensor:
    """The (N, C) table on another grid; one that is not the fixed formula is interpolated."""
    if config.name not in LEARNED:
        formula = sincos_grid(config.grid, config.width)
        if positions == "plain" or torch.allclose(table.float(), formula, atol=1e-2):
            return sincos_at(*_coordinates(config.grid, after, positions), config.width)
    extra = getattr(config, "extra", 0)
    conditions, table = table[:extra].double(), table[extra:]  # these stand for no place
    image = table.double().mT.reshape(-1, *config.grid)
    places = _coordinates(config.grid, after, "scaled")
    image = interpolate(interpolate(image.mT, places[0]).mT, places[1])
    return torch.cat([conditions, image.flatten(1).mT])
