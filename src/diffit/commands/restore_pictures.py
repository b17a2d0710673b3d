"""Pictures of `diffit restore`: before and after with captions, the spread, the path as a film."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffit.commands.restore_problem import to_uint8
from diffit.data.images import to_png
from diffit.report import heat

Panel = tuple[str, np.ndarray]
"""A caption and a (C, H, W) uint8 image."""

LEAST_SIDE = 160
"""Small images are enlarged, by whole factors, until their longer side is about this."""
GAP, LINE = 6, 16
FRAMES_A_SECOND = 10


def before_after(panels: Sequence[Panel]) -> bytes:
    """Images side by side under their captions, as a PNG file."""
    longest = max(max(image.shape[1:]) for _, image in panels)
    scale = max(1, LEAST_SIDE // longest)
    pictures = [Image.fromarray(_enlarged(image, scale)) for _, image in panels]
    width = sum(picture.width for picture in pictures) + GAP * (len(panels) + 1)
    height = max(picture.height for picture in pictures) + LINE + 2 * GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(), GAP
    for (caption, _), picture in zip(panels, pictures, strict=True):
        pen.text((left, GAP // 2), caption, fill="black", font=font)
        sheet.paste(picture, (left, LINE + GAP))
        left += picture.width + GAP
    return to_png(np.asarray(sheet).transpose(2, 0, 1))


def spread_panel(std: Tensor) -> Panel:
    """Where samples differ: the (C, H, W) standard deviation, averaged over channels."""
    values = std.mean(0).cpu().numpy()
    return f"spread, up to {values.max() / 2:.2f}", heat(values)


def film(frames: Sequence[np.ndarray]) -> bytes:
    """(C, H, W) uint8 frames as an endless animated WebP; the last one stays for a second."""
    scale = max(1, LEAST_SIDE // max(frames[0].shape[1:]))
    pictures = [Image.fromarray(_enlarged(frame, scale)) for frame in frames]
    durations = [1000 // FRAMES_A_SECOND] * (len(pictures) - 1) + [1000]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0,
        lossless=True,
    )  # fmt: skip
    return buffer.getvalue()


class Frames:
    """Remembers what the first image of a batch looked like at each evaluation, up to a limit.

    Args:
        limit: frames that are kept; of more, evenly spread ones.
    """

    def __init__(self, limit: int = 120) -> None:
        self.limit = limit
        self.frames: list[np.ndarray] = []
        self._every, self._seen = 1, 0

    def __call__(self, sigma: float, clean: Tensor) -> None:
        """Told of an evaluation."""
        if self._seen % self._every == 0:
            self.frames.append(to_uint8(clean[0].clamp(-1, 1)))
        self._seen += 1
        if len(self.frames) > self.limit:
            self.frames, self._every = self.frames[::2], self._every * 2


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    """(C, H, W) uint8 as (H, W, 3), each pixel a square of side ``scale``."""
    colour = image.repeat(3, axis=0) if len(image) == 1 else image
    return colour.repeat(scale, axis=1).repeat(scale, axis=2).transpose(1, 2, 0)
