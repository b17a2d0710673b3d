"""A folder or zip of image files as a data set."""

from diffit.data.crop import center_crop
from diffit.data.example import Example
from diffit.data.files import Files, printable
from diffit.data.images import Background, decode, to_array
from diffit.data.labels import Labels, find_labels
from diffit.errors import DataError

PROBES = 64
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
    """

    def __init__(
        self,
        files: Files,
        *,
        size: int | None = None,
        channels: int | None = None,
        labels: bool = True,
        background: Background = "white",
    ) -> None:
        if not files.images:
            raise DataError(_empty(files))
        self.files = files
        self._labels = find_labels(files) if labels else Labels((), ())
        self._size = size
        self._channels = channels
        self._background: Background = background
        self.classes = self._labels.classes
        self.shape = self._probe()

    def __len__(self) -> int:
        return len(self.files.images)

    def __getitem__(self, i: int) -> Example:
        name = self.files.images[i]
        shown = self.files.shown(name)
        image = decode(self.files.read(name), name=shown, background=self._background)
        if self._channels is None and self.shape[0] == 1 and image.mode != "L":
            raise DataError(f"{shown} has colour, the first images are grey; set data.channels: 3")
        if self._size is not None:
            image = center_crop(image, self._size, name=shown)
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

    def _probe(self) -> tuple[int, int, int]:
        names = self.files.images
        count = 1 if self._channels is not None else min(PROBES, len(names))
        channels, size = self._channels or 1, (0, 0)
        for k in range(count):
            name = names[k * len(names) // count]
            image = decode(self.files.read(name), name=self.files.shown(name))
            size = image.size if k == 0 else size
            if self._channels is None and image.mode != "L":
                channels = 3
            if k == 0 and self._size is not None:
                center_crop(image, self._size, name=self.files.shown(name))
        width, height = (self._size, self._size) if self._size is not None else size
        return channels, height, width


def _empty(files: Files) -> str:
    kinds = "PNG, JPEG, WebP, BMP, GIF, TIFF or PPM"
    text = f"{printable(str(files.path))} holds no images ({kinds})"
    if files.others:
        example = printable(files.others[0])
        return f"{text}, only {len(files.others)} other files such as {example}"
    return f"{text}; name a folder or zip that does"
