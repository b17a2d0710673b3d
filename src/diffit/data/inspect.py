"""What is at a path: counts, sizes, classes, duplicates, unreadable files, a contact sheet."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from diffit.data import is_npz, open_dataset, open_files
from diffit.data.builtin import PREFIX
from diffit.data.crop import center_crop
from diffit.data.example import Dataset, Follow
from diffit.data.files import Files, printable
from diffit.data.image_set import ImageSet
from diffit.data.images import (
    flatten,
    grid,
    is_16_bit,
    load,
    may_be_transparent,
    to_array,
    to_pillow,
)
from diffit.data.labels import INDEX, Labels, find_labels
from diffit.data.shard_paths import find_shards, names_shards
from diffit.data.shards import ShardSet
from diffit.data.stream_config import StreamConfig
from diffit.errors import DataError

SHEET_IMAGES = 64
SHEET_TILE = 96
"""Images of a contact sheet, and about how wide each is."""
MAX_LISTED = 10_000
"""Classes that are counted without a list of their names."""
USUAL_SIZES = (8, 16, 32, 64, 128, 256, 512)


@dataclass
class Survey:
    """What `diffit data inspect` found; counts are of images."""

    path: str
    layout: str
    images: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    """Name to reason."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height), upright."""
    pixels: Counter[str] = field(default_factory=Counter)
    """grey, 16-bit grey, palette, RGB, CMYK, ..., and `... with transparency`."""
    classes: dict[str, int] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    """Groups of images with the same pixels."""
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no images by their name, by ending."""
    hidden: int = 0
    refusal: str = ""
    """Why the set cannot be opened as it is; empty if it can."""
    settings: dict[str, object] = field(default_factory=dict)
    """Suggested `data:` settings."""
    memory: int = 0
    """Bytes that all images take in memory with these settings."""
    notes: list[str] = field(default_factory=list)
    sheet: np.ndarray | None = None
    """(C, H, W) uint8 contact sheet."""


def survey(path: str, *, follow: Follow = iter) -> Survey:
    """Read every image at ``path`` and say what is there."""
    if names_shards(path):
        found, collector = _survey_shards(path, follow)
    elif path.startswith(PREFIX) or is_npz(path):
        found, collector = _survey_array(path, open_dataset(path), follow)
    else:
        files = open_files(path)
        if not files.images:
            ImageSet(files)  # which says in one sentence what is missing
        found, collector = _survey_files(path, files, follow)
    found.duplicates = [names for names in collector.by_content.values() if len(names) > 1]
    found.sheet = collector.sheet()
    _suggest(found)
    return found


class _Collector:
    """Gathers what needs the pixels: duplicates, and some images for the contact sheet."""

    def __init__(self, count: int) -> None:
        self.by_content: dict[bytes, list[str]] = defaultdict(list)
        self._every = max(1, -(-count // SHEET_IMAGES))
        self._shown: list[Image.Image] = []

    def add(self, i: int, name: str, image: Image.Image) -> None:
        header = f"{image.mode} {image.size} ".encode()
        digest = hashlib.blake2b(header + image.tobytes(), digest_size=16).digest()
        self.by_content[digest].append(name)
        if i % self._every == 0:
            side = min(SHEET_TILE, *image.size)
            self._shown.append(center_crop(image, side, name=name))

    def sheet(self) -> np.ndarray | None:
        """The images seen at even distances, all at the size of the largest, in colour."""
        if not self._shown:
            return None
        side = max(image.width for image in self._shown)
        tiles = [
            image.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            for image in self._shown
        ]
        scale = max(1, SHEET_TILE // side)
        return grid(np.stack([to_array(tile) for tile in tiles]), scale=scale)


def _survey_array(path: str, dataset: Dataset, follow: Follow) -> tuple[Survey, _Collector]:
    found, collector = Survey(path, "one array"), _Collector(len(dataset))
    labels: Counter[int | None] = Counter()
    for i in follow(range(len(dataset))):
        example = dataset[i]
        labels[example.label] += 1
        image = to_pillow(example.image)
        found.images += 1
        found.sizes[image.size] += 1
        found.pixels["grey" if image.mode == "L" else "RGB"] += 1
        collector.add(i, f"image {i}", image)
    found.classes = {name: labels[i] for i, name in enumerate(dataset.classes)}
    return found, collector


def _survey_shards(path: str, follow: Follow) -> tuple[Survey, _Collector]:
    place = find_shards(path, StreamConfig())
    index = place.known
    dataset = ShardSet(
        path, place.places, place.kind, index=index, labels=False, size=1, channels=3
    )
    told = "with an index" if index else "without an index"
    found = Survey(path, f"{dataset.shards} {place.kind} shards, {told}")
    collector = _Collector(index.images if index else SHEET_IMAGES * dataset.shards)
    labels, names, others = Counter[int](), index.classes if index else (), 0
    for j in follow(range(dataset.shards)):
        try:
            opened = dataset.open(j)
            names = names or dataset.named_classes(j)
        except DataError as error:
            found.unreadable[place.places[j].address] = str(error)
            continue
        for i in range(len(opened)):
            shown = opened.shown(i)
            image = _look(found, shown, shown, lambda: opened.read(i))  # noqa: B023  (used at once)
            if image is not None:
                labels[opened.label(i)] += 1
                collector.add(found.images, shown, image)
        others += opened.passed_over
    if others:
        found.notes.append(f"{others} files in the shards are neither images nor labels")
    _count_labels(found, labels, names)
    return found, collector


def _count_labels(found: Survey, labels: Counter[int], names: Sequence[str]) -> None:
    """The images of each class, and a note where labels are missing or wrong."""
    highest = max(labels, default=-1)
    names = names or (tuple(map(str, range(highest + 1))) if highest < MAX_LISTED else ())
    found.classes = {name: labels[i] for i, name in enumerate(names)} if highest >= 0 else {}
    wrong = sum(count for label, count in labels.items() if not 0 <= label < len(names))
    if wrong and highest >= 0:
        found.notes.append(f"{wrong} of the images have no label, or none of these classes")
        found.settings["labels"] = False


def _survey_files(path: str, files: Files, follow: Follow) -> tuple[Survey, _Collector]:
    labels, refusal = _labels(files)
    found = Survey(path, _layout(files, labels), hidden=files.hidden, refusal=refusal)
    found.others = Counter(
        PurePosixPath(name).suffix.lower() or name
        for name in files.others
        if PurePosixPath(name).name != INDEX
    )
    collector, counts = _Collector(len(files.images)), Counter[int]()
    for i in follow(range(len(files.images))):
        name = files.images[i]
        image = _look(found, printable(name), files.shown(name), lambda: files.read(name))  # noqa: B023
        if image is None:
            continue
        if labels.values:
            counts[labels.values[i]] += 1
        collector.add(i, printable(name), image)
    found.classes = {name: counts[i] for i, name in enumerate(labels.classes)}
    return found, collector


def _look(found: Survey, name: str, shown: str, read: Callable[[], bytes]) -> Image.Image | None:
    """Note what an image is; None if it cannot be read, which is noted too."""
    try:
        raw = load(read(), name=shown)
        image = flatten(raw, name=shown)
    except DataError as error:
        found.unreadable[name] = str(error)
        return None
    found.images += 1
    found.sizes[image.size] += 1
    found.pixels[_pixels(raw)] += 1
    return image


def _labels(files: Files) -> tuple[Labels, str]:
    try:
        return find_labels(files), ""
    except DataError as error:
        return Labels((), ()), str(error)


def _layout(files: Files, labels: Labels) -> str:
    if any(PurePosixPath(name).name == INDEX for name in files.others):
        return f"images with {INDEX}"
    if labels.classes:
        return "one sub-folder per class"
    deep = any("/" in name for name in files.images)
    return "images in several folders" if deep else "images in one folder"


def _pixels(image: Image.Image) -> str:
    names = {"1": "1-bit", "P": "palette", "PA": "palette"}
    if is_16_bit(image):
        name = "16-bit grey"
    elif image.mode in ("L", "LA", "La"):
        name = "grey"
    else:
        name = names.get(image.mode, image.mode.removesuffix("A").removesuffix("a"))
    return f"{name} with transparency" if may_be_transparent(image) else name


def _suggest(found: Survey) -> None:
    """Settings that open the set, and what its owner should know."""
    found.settings["path"] = found.path
    if not found.sizes:
        found.notes.append("none of the images can be read")
        return
    grey = sum(n for name, n in found.pixels.items() if "grey" in name or "1-bit" in name)
    channels = 1 if grey == found.images else 3
    if 0 < grey < found.images:
        found.settings["channels"] = 3
        found.notes.append(f"{grey} of the images are grey; channels: 3 repeats them")
    (width, height), count = found.sizes.most_common(1)[0]
    if count < found.images or width != height:
        width = height = _usual_size(found)
        found.settings["size"] = width
    found.memory = found.images * channels * width * height
    if found.refusal:
        found.settings["labels"] = False
        found.notes.append(f"as it is, the set is refused: {found.refusal}")
    if found.memory > 512 << 20:
        found.settings["workers"] = 2
        found.notes.append("the images do not all fit into 512 MiB, so workers help")
    transparent = sum(n for name, n in found.pixels.items() if "transparency" in name)
    if transparent:
        found.notes.append(f"{transparent} have transparency, which becomes white (background)")
    if found.unreadable:
        found.notes.append("training stops at an unreadable file: remove it, or pack without it")
    small = [name for name, n in found.classes.items() if n < 10]
    if small:
        found.notes.append(f"{len(small)} classes have fewer than 10 images, such as {small[0]!r}")


def _usual_size(found: Survey) -> int:
    """The largest usual size that all but a twentieth of the images have without enlargement."""
    sides = np.repeat([min(size) for size in found.sizes], list(found.sizes.values()))
    side = int(np.quantile(sides, 0.05, method="lower"))
    size = max((usual for usual in USUAL_SIZES if usual <= side), default=USUAL_SIZES[0])
    enlarged = int((sides < size).sum())
    if enlarged:
        found.notes.append(f"{enlarged} images are smaller than {size} px and will be enlarged")
    return size
