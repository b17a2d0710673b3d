"""Parquet files and the folders of Hugging Face `datasets`, by pyarrow (extra `hf`).

A parquet file is compressed in groups of rows, so that one row cannot be read alone. `unpack`
writes its images and labels once as an Arrow file, row by row, which is then mapped: any row is at
hand and none is kept in memory. The Arrow files that `save_to_disk` writes are mapped as they are.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from diffit.data.example import MAX_CLASSES
from diffit.data.files import printable
from diffit.data.images import check_size
from diffit.data.tar import BAD_LABEL, NO_LABEL
from diffit.errors import DataError

ROWS = 64
"""Rows that are unpacked at once."""
MAX_GROUP_BYTES = 1 << 32
"""A group of rows that unpacks to more is refused."""
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "image_bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "class")


class Columns(NamedTuple):
    """Where images and labels are in a table."""

    image: str
    label: str | None
    classes: tuple[str, ...]
    """Names of the labels, where the table knows them."""


class ArrowShard:
    """The rows of an Arrow file, mapped.

    Args:
        path: a local file, in Arrow's file or stream format.
        name: what messages call it.
        image, label: names of the columns; empty: found by their names and types.
    """

    passed_over = 0

    def __init__(self, path: Path, *, name: str = "", image: str = "", label: str = "") -> None:
        arrow = _pyarrow()
        self.name = name or str(path)
        try:
            source = arrow.memory_map(str(path))
            try:
                table = arrow.ipc.open_file(source).read_all()
            except Exception:  # it is a stream then, or damaged
                source.seek(0)
                table = arrow.ipc.open_stream(source).read_all()
        except Exception as error:  # whatever a damaged file leads Arrow to
            raise DataError(
                f"{self.name} is no Arrow file, or a damaged one: {_line(error)}"
            ) from None
        self.columns = find_columns(table.schema, self.name, image=image, label=label)
        wanted = [self.columns.image, *([self.columns.label] if self.columns.label else [])]
        try:
            # Arrow believes the offsets in a file: damaged ones would lead out of its memory.
            table.select(wanted).validate(full=True)
        except Exception as error:
            raise DataError(f"{self.name} is damaged: {_line(error)}; restore it") from None
        self._images = table.column(self.columns.image)
        self._labels = table.column(self.columns.label) if self.columns.label else None

    def __len__(self) -> int:
        return len(self._images)

    def shown(self, i: int) -> str:
        """How messages call row ``i``."""
        return f"{printable(self.name)}: row {i}"

    def label(self, i: int) -> int:
        """Label of row ``i``, NO_LABEL or BAD_LABEL."""
        value = NO_LABEL if self._labels is None else self._labels[i].as_py()
        if value == NO_LABEL or value is None:
            return NO_LABEL
        return value if 0 <= value < MAX_CLASSES else BAD_LABEL

    def read(self, i: int) -> bytes:
        """The image file in row ``i``; DataError if there is none."""
        value = self._images[i]
        if hasattr(value, "keys"):
            value = value["bytes"]
        buffer = value.as_buffer()
        if buffer is None:
            raise DataError(f"{self.shown(i)} names an image instead of holding it; embed it")
        check_size(buffer.size, self.shown(i))
        return bytes(buffer.to_pybytes())


def unpack(path: Path, to: Path, *, name: str = "", image: str = "", label: str = "") -> int:
    """Write the images and labels of a parquet file as an Arrow file; how many rows.

    ``to`` appears when it is whole.
    """
    arrow, name = _pyarrow(), name or str(path)
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    try:
        with _parquet(path, name) as file:
            found = find_columns(file.schema_arrow, name, image=image, label=label)
            wanted = [found.image, *([found.label] if found.label else [])]
            _refuse_too_large(file.metadata, to.parent, name)
            rows, writer = 0, None
            for batch in file.iter_batches(batch_size=ROWS, columns=wanted):
                if writer is None:
                    writer = arrow.ipc.new_file(str(partial), batch.schema)
                writer.write_batch(batch)
                rows += len(batch)
            if writer is None:
                raise DataError(f"{name} holds no rows; remove it")
            writer.close()
        partial.replace(to)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{name} cannot be unpacked to {to.parent}: {_line(error)}") from None
    except Exception as error:  # whatever a damaged file leads Arrow to
        raise DataError(f"{name} is damaged: {_line(error)}; restore it") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return rows


def count_rows(path: Path, *, name: str = "") -> int:
    """How many rows a parquet file has, by its last bytes."""
    with _parquet(path, name or str(path)) as file:
        return int(file.metadata.num_rows)


def columns_of(path: Path, *, image: str = "", label: str = "") -> Columns:
    """Where images and labels are in a parquet file."""
    with _parquet(path, str(path)) as file:
        return find_columns(file.schema_arrow, str(path), image=image, label=label)


def find_columns(schema: Any, name: str, *, image: str = "", label: str = "") -> Columns:
    """The columns of images and labels; DataError where that is not clear."""
    features = _features(schema)
    images = [f.name for f in schema if _may_be_image(f, features)]
    labels = [f.name for f in schema if _may_be_label(f, features)]
    for wanted, found, what in ((image, images, "images"), (label, labels, "labels")):
        if wanted and wanted not in found:
            listed = ", ".join(map(printable, found)) or "none"
            raise DataError(f"{name} has no column {wanted!r} of {what}; there is {listed}")
    image = image or _only(images, IMAGE_COLUMNS, name, "images", "data.stream.image_column")
    if not image:
        listed = ", ".join(printable(f.name) for f in schema)
        raise DataError(f"{name} has no column of images, only {listed}; name another file")
    label = label or _only(labels, LABEL_COLUMNS, name, "labels", "data.stream.label_column")
    names = features.get(label, {}).get("names") or []
    return Columns(image, label or None, tuple(map(str, names)))


def _only(found: list[str], usual: tuple[str, ...], name: str, what: str, setting: str) -> str:
    """The one column that it can be; empty if there is none."""
    best = [column for column in found if column.lower() in usual] or found
    if len(best) > 1:
        listed = ", ".join(map(printable, best))
        raise DataError(f"{name} has several columns of {what}: {listed}; choose with {setting}")
    return best[0] if best else ""


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` noted of each column: its type, and the names of labels."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _may_be_image(field: Any, features: dict[str, Any]) -> bool:
    types = _pyarrow().types
    kind = field.type
    if types.is_struct(kind):
        return any(inner.name == "bytes" and types.is_binary(inner.type) for inner in kind)
    image = features.get(field.name, {}).get("_type", "Image") == "Image"
    return bool(image and (types.is_binary(kind) or types.is_large_binary(kind)))


def _may_be_label(field: Any, features: dict[str, Any]) -> bool:
    if not _pyarrow().types.is_integer(field.type):
        return False
    named = features.get(field.name, {}).get("_type") == "ClassLabel"
    return named or field.name.lower() in LABEL_COLUMNS


@contextlib.contextmanager
def _parquet(path: Path, name: str) -> Any:
    _pyarrow()
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(str(path), memory_map=True)
    except Exception as error:  # whatever a damaged file leads Arrow to
        raise DataError(f"{name} is no parquet file, or a damaged one: {_line(error)}") from None
    with file:
        yield file


def _refuse_too_large(metadata: Any, folder: Path, name: str) -> None:
    sizes = [metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups)]
    if max(sizes, default=0) > MAX_GROUP_BYTES:
        raise DataError(f"{name} has groups of more than 4 GiB; write it with smaller ones")
    free = shutil.disk_usage(folder).free
    if sum(sizes) > free:
        raise DataError(
            f"{name} unpacks to {sum(sizes) >> 20} MiB, but {folder} has {free >> 20} MiB free; "
            "make room, or name another folder with data.stream.cache"
        )


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0].rstrip(".:")) if lines else type(error).__name__


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            "parquet and Arrow files need pyarrow: pip install 'diffit-torch[hf]'"
        ) from None
    return pyarrow
