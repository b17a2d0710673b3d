"""The centre crop of ADM (Dhariwal and Nichol, arXiv:2105.05233), pixel by pixel."""

from PIL import Image

from diffit.data.images import MAX_PIXELS
from diffit.errors import DataError


def center_crop(image: Image.Image, size: int, *, name: str = "the image") -> Image.Image:
    """The middle (size x size) of an image whose shorter side was brought to ``size``.

    While the shorter side is at least twice ``size``, both are halved by box averages; then one
    bicubic step; then the crop. Statistics of published references were made this way.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise DataError(f"{name} is {image.width} x {image.height}, too narrow to become {size} px")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
