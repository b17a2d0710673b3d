"""Layouts of ternary matrices: 2-bit tiles in memory, base-3 on disk, the rows of TerDiT.

Codes W in {-1, 0, 1} are kept as W + 1 in {0, 1, 2}.

- **Tiles**, uint8 (ceil(out / 16), ceil(in / 16), 64): what kernels read. A tile holds 16 outputs x
  16 inputs; its byte 4 i + j has, at bits 2 g, the code of output i and input 4 g + j. So one load
  of 64 bytes, masked, is four vectors of 16 x 4 neighbouring codes, as integer dot products take
  them. Sizes are padded to 16 by codes of weight 0.
- **Base 3**, uint8 (ceil(out in / 5),): five codes a byte, c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4, row by
  row; 1.6 bits a weight, a fifth less than tiles. For storage alone.
- **Rows**, uint8 (out / 4, in): the files of TerDiT (arXiv:2405.14854). With h = out / 4 the byte
  [r, k] is c[r, k] << 6 | c[r + h, k] << 4 | c[r + 2h, k] << 2 | c[r + 3h, k].

No function here needs more memory than the matrix as int8 and a few of its packed size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.errors import CheckpointError

TILE = 16
"""Outputs and inputs of a tile."""
TILE_BYTES = TILE * TILE // 4

BASE3 = (1, 3, 9, 27, 81)
BASE3_BYTES = 3**5
"""Larger bytes mean nothing in base 3."""
CHUNK = 1 << 20
"""Base-3 bytes that are looked up at a time."""
PANEL = 32
"""Rows of tiles that are packed at a time."""


def tiles_shape(outputs: int, inputs: int) -> tuple[int, int, int]:
    """Shape of the tiles of an (outputs, inputs) matrix."""
    return -(-outputs // TILE), -(-inputs // TILE), TILE_BYTES


def base3_shape(outputs: int, inputs: int) -> tuple[int]:
    """Shape of an (outputs, inputs) matrix in base 3."""
    return (-(-outputs * inputs // 5),)


def pack_tiles(codes: Tensor) -> Tensor:
    """(out, in) int8 of -1, 0, 1 to tiles; ValueError for other numbers."""
    if codes.ndim != 2 or codes.dtype != torch.int8:
        raise ValueError(
            f"codes are {codes.dtype} of shape {tuple(codes.shape)}; an int8 matrix is packed"
        )
    outputs, inputs = codes.shape
    tiles = torch.empty(tiles_shape(outputs, inputs), dtype=torch.uint8, device=codes.device)
    for first in range(0, len(tiles), PANEL):
        part = codes[first * TILE : (first + PANEL) * TILE]
        if bool(((part < -1) | (part > 1)).any()):
            raise ValueError("codes other than -1, 0 and 1 are not ternary")
        tiles[first : first + PANEL] = _packed(part)
    return tiles


def _packed(codes: Tensor) -> Tensor:
    outputs, inputs = codes.shape
    padded = F.pad(codes, (0, -inputs % TILE, 0, -outputs % TILE)).add_(1).view(torch.uint8)
    rows, columns, _ = tiles_shape(outputs, inputs)
    quarters = padded.view(rows, TILE, columns, 4, 4).unbind(dim=3)
    bits = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    return bits.transpose(1, 2).reshape(rows, columns, TILE_BYTES)


def unpack_tiles(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    """Tiles to (out, in) int8 of -1, 0, 1."""
    rows, columns, _ = tiles.shape
    bits = tiles.view(rows, columns, TILE, 4).transpose(1, 2)
    codes = torch.empty(rows, TILE, columns, 4, 4, dtype=torch.int8, device=tiles.device)
    for g in range(4):
        codes[:, :, :, g] = bits >> 2 * g & 3
    return codes.sub_(1).view(rows * TILE, columns * TILE)[:outputs, :inputs].contiguous()


def check_tiles(tiles: Tensor, outputs: int, inputs: int, *, source: str) -> None:
    """CheckpointError, naming ``source``, unless these are the tiles of such a matrix."""
    _check_bytes(tiles, tiles_shape(outputs, inputs), source=source)
    # Part by part: large temporaries between tensors that stay would leave holes in memory.
    if any(bool((part & part >> 1 & 0b01010101).any()) for part in torch.split(tiles, PANEL)):
        raise CheckpointError(f"{source} has codes of 3, which stand for no weight; it is damaged")
    if not _is_padded_by_zeros(tiles, outputs, inputs):
        raise CheckpointError(f"{source} is padded by weights other than 0; it is damaged")


def tiles_to_base3(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    """Tiles to base 3, exactly."""
    codes = unpack_tiles(tiles, outputs, inputs).add_(1).view(torch.uint8).flatten()
    digits = (F.pad(codes, (0, -len(codes) % 5)) if len(codes) % 5 else codes).view(-1, 5)
    total = torch.zeros_like(digits[:, 0])
    for digit, weight in zip(digits.unbind(dim=1), BASE3, strict=True):
        total += digit * weight
    return total


def base3_to_tiles(packed: Tensor, outputs: int, inputs: int, *, source: str = "base 3") -> Tensor:
    """Base 3 to tiles, exactly; CheckpointError, naming ``source``, if it is no such matrix."""
    _check_bytes(packed, base3_shape(outputs, inputs), source=source)
    if bool((packed >= BASE3_BYTES).any()):
        raise CheckpointError(
            f"{source} has bytes above {BASE3_BYTES - 1}, which are no five codes; it is damaged"
        )
    values = torch.arange(BASE3_BYTES, device=packed.device)
    table = torch.stack([values // weight % 3 - 1 for weight in BASE3], dim=1).to(torch.int8)
    codes = torch.empty(len(packed), 5, dtype=torch.int8, device=packed.device)
    for first in range(0, len(packed), CHUNK):
        part = packed[first : first + CHUNK].int()
        torch.index_select(table, 0, part, out=codes[first : first + CHUNK])
    return pack_tiles(codes.flatten()[: outputs * inputs].view(outputs, inputs))


def tiles_to_rows(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    """Tiles to the rows of TerDiT, exactly; ValueError unless 4 divides ``outputs``."""
    if outputs % 4:
        raise ValueError(f"{outputs} outputs are no multiple of 4, which rows of TerDiT need")
    codes = unpack_tiles(tiles, outputs, inputs).add_(1).view(torch.uint8)
    first, second, third, fourth = codes.view(4, outputs // 4, inputs).unbind()
    return first << 6 | second << 4 | third << 2 | fourth


def rows_to_tiles(rows: Tensor, outputs: int, inputs: int, *, source: str = "rows") -> Tensor:
    """The rows of TerDiT to tiles, exactly; CheckpointError if they are none."""
    if outputs % 4:
        raise CheckpointError(
            f"{source} cannot hold {outputs} outputs: its layout needs a multiple of 4"
        )
    _check_bytes(rows, (outputs // 4, inputs), source=source)
    codes = torch.empty(4, outputs // 4, inputs, dtype=torch.int8, device=rows.device)
    for quarter in range(4):
        codes[quarter] = rows >> 6 - 2 * quarter & 3
    if bool((codes == 3).any()):
        raise CheckpointError(f"{source} has codes of 3, which stand for no weight; it is damaged")
    return pack_tiles(codes.view(outputs, inputs).sub_(1))


def _check_bytes(packed: Tensor, shape: tuple[int, ...], *, source: str) -> None:
    if packed.dtype != torch.uint8 or tuple(packed.shape) != shape:
        kind = str(packed.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{source} is {kind} of shape {tuple(packed.shape)}; its layer wants uint8 of {shape}"
        )


def _is_padded_by_zeros(tiles: Tensor, outputs: int, inputs: int) -> bool:
    beyond_outputs, beyond_inputs = -outputs % TILE, -inputs % TILE
    codes = []
    if beyond_outputs:
        codes.append(unpack_tiles(tiles[-1:], TILE, inputs)[-beyond_outputs:])
    if beyond_inputs:
        codes.append(unpack_tiles(tiles[:, -1:], outputs, TILE)[:, -beyond_inputs:])
    return not any(bool(part.any()) for part in codes)
