"""Arrays from untrusted files: no pickle, sizes known before anything is read, numbers finite."""

import io
import zipfile
from pathlib import Path

import numpy as np

from diffit.data.arrays import UNREADABLE, npy_header
from diffit.data.images import read_file
from diffit.data.latents import MAX_SIDE
from diffit.errors import DataError

MAX_ARRAY_BYTES = 1 << 26
"""A latent of 64 channels and 512 x 512 places in float32."""
FLOATS = ("float16", "float32")


def read_npy(data: bytes, *, name: str, floats: bool = True) -> np.ndarray:
    """The array in the bytes of an npy file; DataError, with its name, if it is none to be read.

    Args:
        data: the whole file.
        name: what messages call it.
        floats: expect finite float16 or float32; else integers.
    """
    file = io.BytesIO(data)
    try:
        shape, _, dtype = npy_header(file)
    except UNREADABLE:
        raise DataError(f"{name} is no npy file that can be read; restore it") from None
    if dtype.hasobject:
        raise DataError(
            f"{name} holds Python objects (a pickle), which could run code; save latents and "
            "labels as two plain arrays, as docs/latents.md shows"
        )
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size != len(data) - file.tell() or size > MAX_ARRAY_BYTES or size <= 0:
        raise DataError(f"{name} announces {size} bytes, but has {len(data) - file.tell()}")
    wanted = dtype.name in FLOATS if floats else dtype.kind in "iu"
    if not wanted:
        kinds = " or ".join(FLOATS) if floats else "an integer type"
        raise DataError(f"{name} holds {dtype.name}; it must be {kinds}")
    file.seek(0)
    values = np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    if floats and not np.isfinite(values).all():
        raise DataError(f"{name} holds values that are not finite; make it anew")
    return values


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file of floats."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > 8 or any(entry.file_size > MAX_ARRAY_BYTES for entry in entries):
                raise DataError(f"{path} unpacks to more than an image's latents; make it anew")
            return {
                entry.filename.removesuffix(".npy"): read_npy(
                    archive.read(entry), name=f"{path}:{entry.filename}"
                )
                for entry in entries
            }
    except (zipfile.BadZipFile, NotImplementedError, *UNREADABLE):
        raise DataError(f"{path} is no npz file, or a damaged one; make it anew") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_npy_file(path: Path, *, floats: bool = True) -> np.ndarray:
    """The array in an npy file."""
    return read_npy(read_file(path), name=str(path), floats=floats)


def latent_shape(values: np.ndarray, *, name: str, posterior: bool) -> tuple[int, int, int]:
    """(c, h, w) of the latent that an array holds, of which a posterior takes 2c channels."""
    if values.ndim != 3 or max(values.shape) > MAX_SIDE or (posterior and values.shape[0] % 2):
        shape = " x ".join(map(str, values.shape))
        wanted = "2c x h x w (means, then deviations)" if posterior else "c x h x w"
        raise DataError(f"{name} is {shape}; a latent here must be {wanted}")
    channels, height, width = values.shape
    return (channels // 2 if posterior else channels), height, width


def as_first(values: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    """``values``; DataError unless they have the shape and type of the first latent."""
    if values.shape != shape or values.dtype != dtype:
        raise DataError(
            f"{name} is {' x '.join(map(str, values.shape))} {values.dtype}, the first latent is "
            f"{' x '.join(map(str, shape))} {dtype}; all must be alike"
        )
    return values
