"""A folder or zip of image files as a data set."""

from PIL import Image

from diffit.data.crop import center_crop
from diffit.data.example import Example
from diffit.data.files import Files, printable
from diffit.data.images import Background, decode, to_array
from diffit.data.labels import Labels, find_labels
from diffit.errors import DataError

PROBES = 16
"""How many images, evenly spread, are looked at to tell a grey set from a coloured one."""


class ImageSet:
    """Image files with their labels, decoded when asked for.

    Nothing but names is read for most files until an example is asked for: a damaged file, or one
    that does not fit the others, is refused with its name then. `diffit data inspect` finds all.

    Args:
        files: a folder or a zip.
        size: side of the square that each image is cropped and resized to; None: all images must
            have one size already.
        channels: 1 or 3 to convert; None: 3 if any of the images looked at first has colour.
        labels: whether to give out labels, where there are any.
        background: what transparent parts become.
        strict: whether a damaged image is refused at once if it is among those looked at first.
    """

    def __init__(
        self,
        files: Files,
        *,
        size: int | None = None,
        channels: int | None = None,
        labels: bool = True,
        background: Background = "white",
        strict: bool = True,
    ) -> None:
        if not files.images:
            raise DataError(_empty(files))
        self.files = files
        self._labels = find_labels(files) if labels else Labels((), ())
        self._size = size
        self._channels = channels
        self._background: Background = background
        self.classes = self._labels.classes
        self.shape = self._probe(strict)

    def __len__(self) -> int:
        return len(self.files.images)

    def __getitem__(self, i: int) -> Example:
        image, shown = self._image(i), self.files.shown(self.files.images[i])
        if self._channels is None and self.shape[0] == 1 and image.mode != "L":
            raise DataError(f"{shown} has colour, the first images are grey; set data.channels: 3")
        _, height, width = self.shape
        if image.size != (width, height):
            raise DataError(
                f"{shown} is {image.width} x {image.height}, the first image is "
                f"{width} x {height}; set data.size to crop and resize all"
            )
        return Example(to_array(image, self.shape[0]), self.label(i))

    def label(self, i: int) -> int | None:
        """The label of example i, without reading its image."""
        return self._labels.values[i] if self._labels.values else None

    def _probe(self, strict: bool) -> tuple[int, int, int]:
        """(C, H, W) from some images, evenly spread from the first on."""
        looks: list[tuple[str, tuple[int, int]]] = []
        refusal: DataError | None = None
        for k in range(count := min(PROBES, len(self))):
            try:
                looks.append(self._look(k * len(self) // count))
            except DataError as error:
                if strict:
                    raise
                refusal = refusal or error
            if looks and self._channels is not None:
                break  # nothing more to find out
        if not looks and refusal is not None:
            raise refusal
        coloured = any(mode != "L" for mode, _ in looks)
        width, height = looks[0][1]
        return self._channels or (3 if coloured else 1), height, width

    def _look(self, i: int) -> tuple[str, tuple[int, int]]:
        image = self._image(i)
        return image.mode, image.size

    def _image(self, i: int) -> Image.Image:
        """Example i as mode L or RGB, cropped and resized if that is asked for."""
        name = self.files.images[i]
        shown = self.files.shown(name)
        image = decode(self.files.read(name), name=shown, background=self._background)
        return image if self._size is None else center_crop(image, self._size, name=shown)


def _empty(files: Files) -> str:
    kinds = "PNG, JPEG, WebP, BMP, GIF, TIFF or PPM"
    text = f"{printable(str(files.path))} holds no images ({kinds})"
    if files.others:
        example = printable(files.others[0])
        return f"{text}, only {len(files.others)} other files such as {example}"
    return f"{text}; name a folder or zip that does"
