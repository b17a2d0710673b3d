"""Single images: reading any usual kind as uint8, writing PNG, grids.

What an image file may hold, and what becomes of it:

* grey, palette, CMYK, 1-bit: grey or RGB; 16-bit grey: rounded to 8 bits; 16-bit colour: the high
  byte; colour profiles are ignored;
* transparency: composed on a background, white unless told otherwise;
* an EXIF orientation: applied, as viewers do;
* several frames, floating point, unusual modes, too many pixels, damage: refused by name.
"""

import contextlib
import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffit.errors import DataError

if TYPE_CHECKING:  # the loader's workers decode without ever importing torch
    from torch import Tensor

Background = Literal["white", "black"]

MAX_FILE_BYTES = 1 << 28
"""Larger image files are refused before they are read."""
MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded; Pillow's own limit."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may try: formats whose decoders are sturdy and call no other program."""
GREY_MODES = ("1", "L", "LA", "La")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
MODES_16 = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(
    source: Path | str | bytes,
    *,
    channels: int | None = None,
    background: Background = "white",
    name: str | None = None,
) -> np.ndarray:
    """One image as (C, H, W) uint8; DataError, with its name, if that cannot be had.

    Args:
        source: a file, or the bytes of one.
        channels: 1 (grey), 3 (RGB), or None: whichever the image has.
        background: what transparent parts become.
        name: what messages call the image; the path if it is one.
    """
    if isinstance(source, bytes):
        data, name = source, name or "the image"
    else:
        data, name = read_file(Path(source), name=name), name or str(source)
    return to_array(decode(data, name=name, background=background), channels)


def read_file(path: Path, *, name: str | None = None) -> bytes:
    """The bytes of a file, bounded; DataError, with its name, if it cannot be read."""
    name = name or str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError(f"{name} is no ordinary file; remove it")
        check_size(status.st_size, name)
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None


def check_size(size: int, name: str) -> None:
    """DataError unless so many bytes can be an image file."""
    if size == 0:
        raise DataError(f"{name} is empty; remove it or restore it")
    if size > MAX_FILE_BYTES:
        raise DataError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB; scale it down first")


def decode(data: bytes, *, name: str, background: Background = "white") -> Image.Image:
    """The bytes of an image file as a Pillow image of mode L or RGB, upright and opaque."""
    return flatten(load(data, name=name), name=name, background=background)


def load(data: bytes, *, name: str) -> Image.Image:
    """The bytes of an image file as a Pillow image, upright, with the pixels that the file has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_frames(image, name)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name} is no image that can be read ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{name} has more than {MAX_PIXELS // 10**6} million pixels; scale it down first"
        ) from None
    except Exception as error:  # Pillow raises whatever a damaged file leads its decoders to
        raise DataError(f"{name} is damaged: {_reason(error)}") from None
    return image


def flatten(image: Image.Image, *, name: str, background: Background = "white") -> Image.Image:
    """Any pixels as mode L or RGB, opaque; DataError if they have no clear meaning in 8 bits."""
    if is_16_bit(image):
        if "transparency" in image.info:
            raise DataError(f"{name} is 16-bit grey with transparency; save it without")
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 257 = 65535 / 255
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise DataError(f"{name} has pixels of mode {image.mode}; save it as 8-bit grey or RGB")
    target = "L" if image.mode in GREY_MODES else "RGB"
    if may_be_transparent(image):
        paint = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(paint, image.convert("RGBA"))
    return image if image.mode == target else image.convert(target)


def is_16_bit(image: Image.Image) -> bool:
    """Whether an image is grey with 16 bits."""
    # Pillow before 11 gives 16-bit PNG the mode of 32-bit integers.
    return image.mode in MODES_16 or (image.mode == "I" and image.format == "PNG")


def may_be_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent colour."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def to_array(image: Image.Image, channels: int | None = None) -> np.ndarray:
    """A Pillow image of mode L or RGB as (C, H, W) uint8; grey is repeated, colour becomes luma."""
    target = image.mode if channels is None else "L" if channels == 1 else "RGB"
    if image.mode != target:
        image = image.convert(target)
    pixels = np.asarray(image)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return planes.copy()  # Pillow's memory is read-only


def to_pillow(image: "np.ndarray | Tensor") -> Image.Image:
    """(1 or 3, H, W) uint8 as a Pillow image."""
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.dtype != np.uint8:
        raise ValueError(
            f"an image is (1 or 3, height, width) uint8, not {pixels.shape} {pixels.dtype}"
        )
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def to_png(image: "np.ndarray | Tensor") -> bytes:
    """(1 or 3, H, W) uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path: Path, image: "np.ndarray | Tensor") -> None:
    """Write (1 or 3, H, W) uint8; a reader sees the whole file or none."""
    write_atomic(path, to_png(image))


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, then rename; DataError if the disk does not let us."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise DataError(f"{path} cannot be written: {error.strerror}") from None


def grid(
    images: "np.ndarray | Tensor",
    *,
    columns: int | None = None,
    scale: int = 1,
    gap: int = 2,
    fill: int = 255,
) -> np.ndarray:
    """(N, C, H, W) uint8 images as one (C, height, width) picture, row by row.

    Args:
        images: at least one.
        columns: images in a row; by default a square grid.
        scale: each pixel becomes a square of this side.
        gap: width of the lines between images, in pixels of the picture.
        fill: value of the lines, and of places without an image.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4 or len(pixels) == 0 or pixels.dtype != np.uint8:
        raise ValueError(f"images are (N, C, H, W) uint8, not {pixels.shape} {pixels.dtype}")
    columns = columns or int(np.ceil(len(pixels) ** 0.5))
    rows = -(-len(pixels) // columns)
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    _, channels, height, width = pixels.shape
    picture = np.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), fill, np.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        picture[:, top : top + height, left : left + width] = image
    return picture


def _check_frames(image: Image.Image, name: str) -> None:
    # A camera's MPO carries previews behind its one picture; elsewhere frames are a choice to make.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{name} has {frames} frames; save the ones you want as single images")


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
