"""Layouts of ternary matrices: each is what its sentence says, and leads back exactly."""

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import FIXTURES
from diffit.errors import CheckpointError
from diffit.nn import tiles as tiles_module
from diffit.nn.tiles import (
    base3_shape,
    base3_to_tiles,
    check_tiles,
    pack_tiles,
    rows_to_tiles,
    tiles_shape,
    tiles_to_base3,
    tiles_to_rows,
    unpack_tiles,
)

SHAPES = [(16, 16), (1, 1), (40, 24), (17, 33), (560, 20), (4, 5)]


def codes_of(outputs: int, inputs: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(-1, 2, (outputs, inputs), generator=draw, dtype=torch.int8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_and_base3_lead_back_exactly(shape):
    codes = codes_of(*shape)
    tiles = pack_tiles(codes)
    assert tiles.shape == tiles_shape(*shape)
    assert tiles.dtype == torch.uint8
    assert torch.equal(unpack_tiles(tiles, *shape), codes)
    packed = tiles_to_base3(tiles, *shape)
    assert packed.shape == base3_shape(*shape)
    assert torch.equal(base3_to_tiles(packed, *shape), tiles)


def test_a_byte_of_a_tile_holds_the_codes_that_its_sentence_says():
    codes = codes_of(32, 48)
    tiles = pack_tiles(codes)
    for output, inp in [(0, 0), (3, 6), (16, 15), (31, 47), (21, 30)]:
        i, k = output % 16, inp % 16
        byte = int(tiles[output // 16, inp // 16, 4 * i + k % 4])
        assert byte >> 2 * (k // 4) & 3 == int(codes[output, inp]) + 1


def test_a_byte_of_base3_holds_five_codes_of_a_row():
    codes = torch.tensor([[-1, 0, 1, 1, 0, 1]], dtype=torch.int8)
    packed = tiles_to_base3(pack_tiles(codes), 1, 6)
    assert packed.tolist() == [0 + 3 * 1 + 9 * 2 + 27 * 2 + 81 * 1, 2]


def test_padding_is_of_zeros():
    tiles = pack_tiles(codes_of(17, 5))
    padded = unpack_tiles(tiles, 32, 16)
    assert not padded[17:].any()
    assert not padded[:, 5:].any()


@pytest.mark.parametrize("shape", [(16, 16), (40, 24), (4, 5), (2052, 20)], ids=str)
def test_rows_of_terdit_lead_to_tiles_and_back_exactly(shape):
    codes = codes_of(*shape)
    rows = tiles_to_rows(pack_tiles(codes), *shape)
    quarter = shape[0] // 4
    assert rows.shape == (quarter, shape[1])
    assert int(rows[0, 1] >> 4 & 3) == int(codes[quarter, 1]) + 1
    assert torch.equal(rows_to_tiles(rows, *shape), pack_tiles(codes))


@pytest.mark.parametrize("name", ["linear", "linear_nobias"])
def test_the_released_packing_is_read_and_written_exactly(name):
    recorded = load_file(FIXTURES / "terdit_tiny.safetensors")
    codes, rows = recorded[f"{name}.ternary"], recorded[f"{name}.packed"]
    tiles = rows_to_tiles(rows, *codes.shape)
    assert torch.equal(unpack_tiles(tiles, *codes.shape), codes)
    assert torch.equal(tiles_to_rows(tiles, *codes.shape), rows)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that came to be, views of ``known`` aside."""

    def __init__(self, known: torch.Tensor) -> None:
        super().__init__()
        self.known, self.nbytes = known.data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() != self.known:
            self.nbytes = max(self.nbytes, made.untyped_storage().nbytes())
        return made


def test_nothing_larger_than_the_matrix_comes_to_be(monkeypatch):
    monkeypatch.setattr(tiles_module, "CHUNK", 1 << 17)
    codes = codes_of(4096, 512)
    tiles = pack_tiles(codes)
    rows, base3 = tiles_to_rows(tiles, *codes.shape), tiles_to_base3(tiles, *codes.shape)
    # Not even the result of packing is: codes are packed by panels.
    for task, bound in [
        (lambda: pack_tiles(codes), codes.nbytes // 4),
        (lambda: unpack_tiles(tiles, *codes.shape), codes.nbytes),
        (lambda: rows_to_tiles(rows, *codes.shape), codes.nbytes),
        (lambda: tiles_to_rows(tiles, *codes.shape), codes.nbytes),
        (lambda: base3_to_tiles(base3, *codes.shape), codes.nbytes + 4),
        (lambda: tiles_to_base3(tiles, *codes.shape), codes.nbytes + 4),
    ]:
        with Largest(codes) as largest:
            task()
        assert 0 < largest.nbytes <= bound


@pytest.mark.parametrize("wrong", [2, -2, -128, 127])
def test_other_codes_are_not_packed(wrong):
    codes = codes_of(20, 20)
    codes[19, 3] = wrong
    with pytest.raises(ValueError, match="codes other than -1, 0 and 1"):
        pack_tiles(codes)
    with pytest.raises(ValueError, match="an int8 matrix is packed"):
        pack_tiles(codes.float())


def test_what_is_no_ternary_matrix_is_refused_in_one_sentence():
    shape = (20, 36)
    tiles = pack_tiles(codes_of(*shape))
    check_tiles(tiles, *shape, source="w")

    def refused(match: str, tensor: torch.Tensor) -> None:
        with pytest.raises(CheckpointError, match=match):
            check_tiles(tensor, *shape, source="layer.codes")

    threes = tiles.clone()
    threes[1, 2, 3] |= 0b00110000
    refused("layer.codes has codes of 3", threes)
    for place in [(1, 0, 63), (0, 2, 1)]:  # an output, an input beyond the matrix
        padded = tiles.clone()
        padded[place] = 0b10101010
        refused("padded by weights other than 0", padded)
    refused("is uint8 of shape \\(1, 3, 64\\); its layer wants uint8 of", tiles[:1])
    refused("is float32 of shape", tiles.float())


def test_base3_and_rows_that_are_none_are_refused():
    packed = tiles_to_base3(pack_tiles(codes_of(8, 8)), 8, 8)
    packed[3] = 243
    with pytest.raises(CheckpointError, match="w has bytes above 242"):
        base3_to_tiles(packed, 8, 8, source="w")
    with pytest.raises(CheckpointError, match="its layer wants uint8 of \\(13,\\)"):
        base3_to_tiles(packed[:12], 8, 8, source="w")
    rows = torch.full((2, 8), 0b11, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="w has codes of 3"):
        rows_to_tiles(rows, 8, 8, source="w")
    with pytest.raises(CheckpointError, match="its layer wants uint8 of \\(2, 9\\)"):
        rows_to_tiles(rows, 8, 9, source="w")
    with pytest.raises(CheckpointError, match="a multiple of 4"):
        rows_to_tiles(rows, 9, 8, source="w")
    with pytest.raises(ValueError, match="no multiple of 4"):
        tiles_to_rows(pack_tiles(codes_of(9, 8)), 9, 8)
