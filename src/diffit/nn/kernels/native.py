"""Ternary matrices on CPUs, by the C++ library beside this file, where there is one."""

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

VERSION = 2
"""Of the library's interface; one that was built for another is not used."""
LARGEST_INPUTS = 1 << 18
"""Sums of longer rows could leave 32 bits."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
THREAD_WORK = 1 << 21
"""Multiplications that are worth a thread of their own."""


class Library(NamedTuple):
    """The opened library, and how many instruction sets of this machine it has."""

    functions: ctypes.CDLL
    levels: int


def levels() -> int:
    """How many instruction sets this machine has, 0 if there is no library.

    On x86: 0 is portable, 1 AVX2, 2 AVX-512 VNNI; on ARM: 0 is portable, 1 NEON dot products.
    """
    library = _library()
    return 0 if library is None else library.levels


def serves(device: torch.device, *, inputs: int, groups: int) -> bool:
    """Whether the library takes such matrices; else PyTorch must."""
    return (
        device.type == "cpu"
        and 0 < inputs <= LARGEST_INPUTS
        and (groups == 1 or inputs // groups % 16 == 0)
        and not torch.compiler.is_compiling()
        and levels() > 0
    )


def rounded_product(
    x: Tensor,
    tiles: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    outputs: int,
    level: int | None = None,
) -> Tensor:
    """As `diffit.nn.kernels.rounded.rounded_product`, with codes as tiles.

    Args:
        x: (M, K); float16 and float64 are computed as float32.
        level: of the instruction set; the fastest by default.
    """
    rows = x.detach().to(x.dtype if x.dtype in DTYPES else torch.float32).contiguous()
    scale = scale.float().contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    tiles = tiles.contiguous()
    (count, inputs), groups = rows.shape, scale[0].numel()
    y = torch.empty(count, outputs, dtype=rows.dtype)
    if y.numel() == 0:
        return y.to(x.dtype)
    library, level = _opened(level)
    threads = _threads(count * inputs * outputs)
    size = library.diffit_ternary_memory(count, inputs, outputs, groups, threads)
    memory = torch.empty(size, dtype=torch.uint8)
    library.diffit_ternary_linear(
        rows.data_ptr(),
        tiles.data_ptr(),
        scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        memory.data_ptr(),
        count,
        inputs,
        outputs,
        len(scale),
        groups,
        DTYPES[rows.dtype],
        threads,
        level,
    )
    return y.to(x.dtype)


def weights(
    tiles: Tensor,
    scale: Tensor,
    *,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    level: int | None = None,
) -> Tensor:
    """(N, K) weights a W of tiles in full precision."""
    tiles, scale = tiles.contiguous(), scale.float().contiguous()
    full = torch.empty(outputs, inputs, dtype=dtype if dtype in DTYPES else torch.float32)
    library, level = _opened(level)
    library.diffit_ternary_weights(
        tiles.data_ptr(),
        scale.data_ptr(),
        full.data_ptr(),
        outputs,
        inputs,
        len(scale),
        scale[0].numel(),
        DTYPES[full.dtype],
        _threads(16 * full.numel()),  # to write a weight takes the time of some products
        level,
    )
    return full.to(dtype)


def _opened(level: int | None) -> tuple[ctypes.CDLL, int]:
    """The library, and the fastest level unless another one is asked for."""
    library = _library()
    if library is None:
        raise RuntimeError("diffit was installed without its C++ library")
    return library.functions, library.levels - 1 if level is None else level


def _threads(work: int) -> int:
    return max(1, min(torch.get_num_threads(), work // THREAD_WORK))


@cache
def _library() -> Library | None:
    """The library, or None where the package was installed without a C++ compiler."""
    for path in sorted(Path(__file__).parent.glob("_ternary.*")):
        try:
            library = ctypes.CDLL(str(path))
            if library.diffit_ternary_version() == VERSION:
                return Library(_declared(library), int(library.diffit_ternary_levels()))
        except (OSError, AttributeError):
            continue
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.diffit_ternary_memory.restype = size
    library.diffit_ternary_memory.argtypes = [*(size,) * 4, number]
    library.diffit_ternary_weights.restype = None
    library.diffit_ternary_weights.argtypes = [*(pointer,) * 3, *(size,) * 4, *(number,) * 3]
    library.diffit_ternary_linear.restype = None
    library.diffit_ternary_linear.argtypes = [*(pointer,) * 6, *(size,) * 5, *(number,) * 3]
    return library
