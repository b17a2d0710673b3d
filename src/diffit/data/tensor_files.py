"""Safetensors files of many rows, read row by row where they lie."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from diffit.errors import DataError

OPEN_FILES = 128
"""Kept open at a time: systems allow a process some hundred."""


class TensorFiles:
    """Files that each hold tensors by the same names.

    Args:
        paths: the files; each is opened when it is first read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._owner = 0

    def names(self, file: int) -> set[str]:
        """Names of the tensors in one file."""
        return set(self._read(file, lambda handle: handle.keys()))

    def shape(self, file: int, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which is not read."""
        return tuple(self._read(file, lambda handle: handle.get_slice(name).get_shape()))

    def row(self, file: int, name: str, place: int) -> np.ndarray:
        """Row ``place`` of a tensor; DataError, with the file's name, if it cannot be read."""
        rows: np.ndarray = self._read(
            file, lambda handle: handle.get_slice(name)[place : place + 1]
        )
        if len(rows) != 1:
            raise DataError(f"{self.paths[file]} is damaged: {name} has no row {place}; restore it")
        return np.asarray(rows[0])

    def whole(self, file: int, name: str) -> np.ndarray:
        """A whole tensor."""
        tensor: np.ndarray = self._read(file, lambda handle: handle.get_tensor(name))
        return tensor

    def _read(self, file: int, read: Any) -> Any:
        try:
            return read(self._handle(file))
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"{self.paths[file]} is damaged: {error}; restore it") from None
        except (TypeError, AttributeError):
            raise DataError(
                f"{self.paths[file]} holds numbers of a type that numpy lacks, such as bfloat16; "
                "save it in float16 or float32"
            ) from None

    def _handle(self, file: int) -> Any:
        if self._owner != os.getpid():  # a forked process must not share its parent's files
            self._open, self._owner = OrderedDict(), os.getpid()
        if file not in self._open:
            self._open[file] = safe_open(self.paths[file], framework="numpy")
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(file)
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_owner": 0}
