"""Which label a file has: from `dataset.json`, from the sub-folder it lies in, or none."""

import json
from typing import Any, NamedTuple

from diffit.data.example import MAX_CLASSES
from diffit.data.files import Files, printable
from diffit.errors import DataError

INDEX = "dataset.json"
"""EDM's index: {"labels": [["00000/img00000000.png", 3], ...]}, or null instead of the list."""
NO_LABELS = "data.labels: false"


class Labels(NamedTuple):
    """A label for each image of a set, in its order, and a name for each value; or neither."""

    values: tuple[int, ...]
    classes: tuple[str, ...]


def find_labels(files: Files) -> Labels:
    """Labels of ``files.images``; DataError where the set does not say clearly what they are."""
    if INDEX in files.others:
        return _from_index(files, "")
    top = _only_folder(files)
    if top + INDEX in files.others:
        return _from_index(files, top)
    depths = {name.count("/") for name in files.images}
    if depths <= {0}:
        return Labels((), ())
    if depths == {1}:
        return _from_folders(files, "")
    if depths == {2} and top:
        return _from_folders(files, top)
    raise DataError(_unclear(files))


def _only_folder(files: Files) -> str:
    """`name/` if all images lie in that one folder, as in the zip of a folder; else nothing."""
    first = {name.split("/", 1)[0] + "/" for name in files.images}
    return first.pop() if len(first) == 1 and all("/" in n for n in files.images) else ""


def _from_folders(files: Files, top: str) -> Labels:
    folders = [name.removeprefix(top).split("/", 1)[0] for name in files.images]
    classes = sorted(set(folders))
    numbers = {name: i for i, name in enumerate(classes)}
    for other in files.others:
        first, _, inside = other.removeprefix(top).partition("/")
        if other.startswith(top) and inside and first not in numbers:
            raise DataError(
                f"{printable(str(files.path))}: sub-folder {printable(first)!r} holds files but no "
                f"images that can be read; remove it, or convert them to PNG or JPEG"
            )
    return Labels(tuple(numbers[name] for name in folders), tuple(map(printable, classes)))


def _unclear(files: Files) -> str:
    path = printable(str(files.path))
    deepest = max(files.images, key=lambda name: name.count("/"))
    if any("/" not in name for name in files.images):
        return (
            f"{path} holds images both directly and in sub-folders ({printable(deepest)}); "
            f"separate them, or take them all without labels ({NO_LABELS})"
        )
    return (
        f"{path} holds images in folders inside folders ({printable(deepest)}); name the folder "
        f"whose sub-folders are the classes, or take them all without labels ({NO_LABELS})"
    )


def _from_index(files: Files, top: str) -> Labels:
    where = files.shown(top + INDEX)
    index = read_index(files.read(top + INDEX), where)
    entries = index.get("labels")
    if entries is None:
        return Labels((), ())
    table = {top + name: label for name, label in label_table(entries, where).items()}
    for name in files.images:
        if name not in table:
            raise DataError(f"{where} has no label for {printable(name)}; add it, or {NO_LABELS}")
    present = set(files.images)
    for name in table:
        if name not in present:
            raise DataError(f"{where} names {printable(name)}, which is not there")
    values = tuple(table[name] for name in files.images)
    return Labels(values, class_names(index.get("classes"), max(values, default=-1) + 1, where))


def read_index(data: bytes, where: str) -> dict[str, Any]:
    try:
        index = json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{where} is no valid JSON") from None
    if not isinstance(index, dict) or "labels" not in index:
        raise DataError(f'{where} must be {{"labels": [[file, label], ...]}}')
    return index


def label_table(entries: Any, where: str) -> dict[str, int]:
    if not isinstance(entries, list):
        raise DataError(f'{where}: "labels" must be a list of [file, label]')
    table: dict[str, int] = {}
    for entry in entries:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool):
                if not 0 <= label < MAX_CLASSES:
                    raise DataError(
                        f"{where}: the label of {printable(name)} is {label}; "
                        f"labels are 0 to {MAX_CLASSES - 1}"
                    )
                if table.setdefault(name, label) != label:
                    raise DataError(f"{where} gives {printable(name)} two labels")
            case _:
                raise DataError(
                    f"{where}: {json.dumps(entry)[:60]} must be [file, label], the label an integer"
                )
    return table


def class_names(names: Any, count: int, where: str) -> tuple[str, ...]:
    if names is None:
        return tuple(map(str, range(count)))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{where}: "classes" must be a list of names')
    if len(names) < count:
        raise DataError(f'{where}: "classes" has {len(names)} names, but labels go to {count - 1}')
    return tuple(names)
