"""Folders of tensors that are written whole or not at all, with a checksum of every file.

`NAME.safetensors` holds one set of tensors, `config.yaml` the settings they belong to, `state.json`
the rest: the format, what belongs to that moment, and size and BLAKE2b of each file. A set may
also lie in pieces in several files; then `state.json` lists them under `pieces`. Nothing in such a
folder can run code when it is read.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffit import __version__
from diffit.errors import CheckpointError
from diffit.pieces import PiecedTensors

FORMAT = 1
"""Goes up when an older version of the library could misread a folder."""

STATE, CONFIG = "state.json", "config.yaml"
SUFFIX = ".safetensors"


class DamagedError(CheckpointError):
    """A folder is not as it was written: another one may serve instead."""


def write_sealed(
    folder: Path,
    *,
    config: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Write a folder; every file is flushed, and the folder renamed into place at the end.

    Args:
        folder: where it will be; an old one of that name is replaced.
        config: content of `config.yaml`.
        tensors: file name without suffix -> the tensors of that file.
        state: what else belongs to this moment; anything that JSON can hold.
    """
    with appearing(folder) as part:
        for name, group in tensors.items():
            write_tensors(part / f"{name}{SUFFIX}", group)
        describe(part, config=config, state=state)


def describe(
    part: Path,
    *,
    config: str,
    state: Mapping[str, Any],
    notes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write `config.yaml` and `state.json` of a folder in the making, whose tensors are there.

    ``notes`` are those of files that others have looked at already, by name, see `note`.
    """
    (part / CONFIG).write_text(config, encoding="utf-8")
    known = notes or {}
    files = {file.name: known.get(file.name) or note(file) for file in sorted(part.iterdir())}
    content = {"format": FORMAT, "diffit": __version__, **state, "files": files}
    content["blake2b"] = _digest(content)
    (part / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def note(file: Path) -> dict[str, Any]:
    """What `state.json` says of a file."""
    return {"bytes": file.stat().st_size, "blake2b": checksum(file)}


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``folder`` once all is on the disk.

    If the writing fails nothing has happened; CheckpointError for what the disk refuses.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        settle(part, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def settle(part: Path, folder: Path) -> None:
    """Flush a folder in the making, and rename it to ``folder``; OSError if the disk refuses."""
    for file in part.iterdir():
        _flush(file)
    _flush(part)
    _replace(part, folder)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file; OSError if the disk refuses."""
    try:
        save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, file)
    except SafetensorError as error:
        number = number_in(str(error))
        if number is None:
            raise
        raise OSError(number, os.strerror(number)) from None


def number_in(text: str) -> int | None:
    """The error number of the operating system in a library's words: "... (os error 28)"."""
    found = re.search(r"\(os error (\d+)\)", text)
    return int(found[1]) if found else None


def checksum(file: Path) -> str:
    """BLAKE2b of a file's content, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def _digest(state: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in state.items() if key != "blake2b"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _replace(part: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a sealed folder, so that no reader ever sees a half of it."""
    old = folder.with_name(f".{folder.name}.old")
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(parent: Path) -> None:
    """Remove what killed processes left half written or half removed in ``parent``."""
    for suffix in ("part", "old"):
        for path in parent.glob(f".*.{suffix}"):
            shutil.rmtree(path, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """The content of `state.json`; CheckpointError if this is no such folder, or a damaged one."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{folder} is no checkpoint: it has no {STATE}") from None
    except (OSError, ValueError, RecursionError):
        raise DamagedError(f"{folder} is damaged: {STATE} cannot be read") from None
    if not isinstance(state, dict) or not (
        _lists_files(state.get("files")) and _lists_pieces(state)
    ):
        raise DamagedError(f"{folder} is no checkpoint: its {STATE} lists no files")
    if state.get("blake2b") != _digest(state):
        raise DamagedError(f"{folder} is damaged: {STATE} is not as it was written")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {state.get('format')!r}, but this version of diffit reads "
            f"format {FORMAT}; use the version that wrote it ({state.get('diffit')})"
        )
    return state


def _lists_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(note, dict) and {"bytes", "blake2b"} <= note.keys() for note in files.values()
    )


def _lists_pieces(state: Mapping[str, Any]) -> bool:
    pieces = state.get("pieces", {})
    return isinstance(pieces, dict) and all(
        isinstance(files, list) and all(isinstance(f, str) and f in state["files"] for f in files)
        for files in pieces.values()
    )


def verify(folder: Path, *files: str) -> None:
    """CheckpointError unless the named files, by default all, are as they were written."""
    notes = read_state(folder)["files"]
    for name in files or tuple(notes):
        path = folder / Path(name).name
        if name not in notes or not path.is_file():
            raise DamagedError(f"{folder} is damaged: {name} is missing")
        size = path.stat().st_size
        if size != notes[name]["bytes"]:
            raise DamagedError(
                f"{folder} is damaged: {name} has {size} bytes instead of {notes[name]['bytes']}"
            )
        if checksum(path) != notes[name]["blake2b"]:
            raise DamagedError(f"{folder} is damaged: the checksum of {name} does not match")


def sets_in(folder: Path) -> list[str]:
    """Names of the sets of tensors in a sealed folder."""
    state = read_state(folder)
    if _pieces(state):
        return list(_pieces(state))
    return [name.removesuffix(SUFFIX) for name in state["files"] if name.endswith(SUFFIX)]


def read_tensors(folder: Path, name: str) -> "TensorFile | PiecedTensors":
    """One verified set of tensors, on the CPU, whether it lies in one file or in pieces."""
    pieces = _pieces(read_state(folder)).get(name)
    files = pieces or [f"{name}{SUFFIX}"]
    verify(folder, *files)
    try:
        if pieces:
            return PiecedTensors([folder / file for file in files], prefix=f"{name}/")
        return TensorFile(folder / files[0])
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(f"{folder} is damaged: {name}: {error}") from None


def fingerprint(folder: Path, name: str) -> str:
    """A checksum of one set of tensors: of its file, or of the checksums of its pieces."""
    state = read_state(folder)
    files = _pieces(state).get(name)
    if files is None:
        return str(state["files"][f"{name}{SUFFIX}"]["blake2b"])
    notes = "".join(state["files"][file]["blake2b"] for file in files)
    return hashlib.blake2b(notes.encode()).hexdigest()


def _pieces(state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Set -> its files, where sets lie in pieces."""
    return dict(state.get("pieces", {}))


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each mapped into memory by itself when it is asked for.

    Pages that were read of a mapped file count as memory until the last tensor of the mapping is
    gone: whoever copies the tensors of one mapping has all of them twice. SafetensorError for what
    is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
