import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffit.data.images import grid, read_image, to_png, write_atomic, write_png
from diffit.errors import DataError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 10), dtype=np.uint8)


def file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth() -> np.ndarray:
    """(32, 32, 3): what JPEG and CMYK keep within a few levels."""
    y, x = np.mgrid[0:32, 0:32]
    return np.stack([4 * x + 60, 4 * y + 60, 2 * (x + y) + 60], axis=2).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    read = read_image(file(Image.fromarray(COLOUR), kind, **options))
    assert read.dtype == np.uint8
    assert (read == COLOUR.transpose(2, 0, 1)).all()


def test_grey_stays_grey_is_repeated_or_colour_becomes_luma() -> None:
    grey, colour = file(Image.fromarray(GREY)), file(Image.fromarray(COLOUR))
    assert (read_image(grey) == GREY[None]).all()
    assert (read_image(grey, channels=3) == np.stack([GREY] * 3)).all()
    luma = COLOUR @ [0.299, 0.587, 0.114]
    assert abs(read_image(colour, channels=1)[0] - luma).max() <= 0.51


def test_palette_and_1_bit_images_give_their_colours() -> None:
    few = Image.fromarray(COLOUR // 128 * 200)
    assert (read_image(file(few.quantize(8))) == np.asarray(few).transpose(2, 0, 1)).all()
    assert (read_image(file(few.quantize(8), "GIF")) == np.asarray(few).transpose(2, 0, 1)).all()
    bits = GREY > 127
    assert (read_image(file(Image.fromarray(bits))) == bits[None] * 255).all()


def test_16_bit_grey_is_rounded_to_8_bits() -> None:
    values = np.array([[0, 128, 129, 257, 32767, 65406, 65407, 65535]], dtype=np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    assert (read_image(file(Image.fromarray(values)))[0] == expected).all()
    assert (read_image(file(Image.fromarray(values), "TIFF"))[0] == expected).all()


@pytest.mark.parametrize(("background", "empty"), [("white", 255), ("black", 0)])
def test_transparency_is_composed_on_the_background(background, empty: int) -> None:
    alpha = np.zeros((12, 10), np.uint8)
    alpha[:6] = 255
    picture = np.dstack([COLOUR, alpha])
    read = read_image(file(Image.fromarray(picture)), background=background)
    assert (read[:, :6] == COLOUR.transpose(2, 0, 1)[:, :6]).all()
    assert (read[:, 6:] == empty).all()


def test_half_transparency_is_the_mean_with_the_background() -> None:
    picture = np.dstack([COLOUR, np.full((12, 10), 128, np.uint8)])
    read = read_image(file(Image.fromarray(picture)), background="black")
    assert abs(read.astype(int) - COLOUR.transpose(2, 0, 1) * (128 / 255)).max() <= 1


def test_a_transparent_colour_of_a_palette_is_composed_too() -> None:
    two = Image.new("P", (2, 1))
    two.putpalette([10, 20, 30, 200, 100, 50])
    two.putpixel((1, 0), 1)
    read = read_image(file(two, transparency=0))
    assert read[:, 0].T.tolist() == [[255, 255, 255], [200, 100, 50]]


def test_grey_with_alpha_stays_grey() -> None:
    picture = Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)]), "LA")
    assert (read_image(file(picture)) == GREY[None]).all()


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_orientation_is_applied(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    # How a viewer shows a file with each orientation, by the standard's table.
    shown = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }[turn](COLOUR)
    read = read_image(file(Image.fromarray(COLOUR), exif=exif))
    assert read.shape == (3, *shown.shape[:2])
    assert (read == shown.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpeg_plain_and_progressive_are_read(options: dict) -> None:
    read = read_image(file(Image.fromarray(smooth()), "JPEG", quality=98, **options))
    assert abs(read.astype(int) - smooth().transpose(2, 0, 1)).max() <= 6


def test_cmyk_is_not_inverted() -> None:
    picture = Image.fromarray(smooth()).convert("CMYK")
    read = read_image(file(picture, "JPEG", quality=98))
    assert abs(read.astype(int) - smooth().transpose(2, 0, 1)).max() <= 8


def test_a_camera_file_with_previews_gives_its_picture() -> None:
    main, preview = Image.fromarray(smooth()), Image.new("RGB", (8, 8))
    read = read_image(file(main, "MPO", save_all=True, append_images=[preview], quality=98))
    assert read.shape == (3, 32, 32)


def test_png_is_written_as_it_is_and_nothing_else_is_left(tmp_path: Path) -> None:
    image = torch.from_numpy(COLOUR.transpose(2, 0, 1).copy())
    write_png(tmp_path / "a b ü.png", image)
    write_png(tmp_path / "grey.png", GREY[None])
    assert (read_image(tmp_path / "a b ü.png") == image.numpy()).all()
    assert (read_image(tmp_path / "grey.png") == GREY[None]).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a b ü.png", "grey.png"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch) -> None:
    write_png(tmp_path / "a.png", GREY[None])
    before = (tmp_path / "a.png").read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"a\.png cannot be written: No space left on device"):
        write_atomic(tmp_path / "a.png", b"new")
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("image", [GREY, COLOUR, GREY[None].astype(np.float32)])
def test_what_is_no_image_array_is_not_written(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an image is \(1 or 3, height, width\) uint8"):
        to_png(image)


def test_a_grid_shows_each_image_scaled_at_its_place() -> None:
    images = RNG.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    picture = grid(images, columns=3, scale=2, gap=1, fill=9)
    assert picture.shape == (3, 2 * 8 + 1, 3 * 12 + 2)
    for i, image in enumerate(images):
        top, left = i // 3 * 9, i % 3 * 13
        shown = picture[:, top : top + 8, left : left + 12]
        assert (shown[:, ::2, ::2] == image).all()
        assert (shown[:, 1::2, 1::2] == image).all()
    assert (picture[:, 8] == 9).all()  # the line between the rows
    assert (picture[:, 9:, 26:] == 9).all()  # the place without an image


def test_a_grid_needs_images() -> None:
    with pytest.raises(ValueError, match=r"images are \(N, C, H, W\) uint8"):
        grid(np.zeros((0, 3, 4, 4), np.uint8))
