"""What a path of shards stands for: a folder, a file, an address, a pattern, or an index."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffit.data import remote
from diffit.data.copies import Kind, Place
from diffit.data.files import Folder
from diffit.data.shard_index import INDEX, MAX_INDEX_BYTES, ShardIndex, read_index, resolve
from diffit.data.stream_config import StreamConfig
from diffit.data.transports import expand
from diffit.errors import DataError

MAX_SHARDS = 1 << 21
OPENING_RETRIES = 4
"""Attempts at an index: its address may be mistyped, and somebody waits before an empty screen."""
ENDINGS: dict[str, Kind] = {".tar": "tar", ".parquet": "parquet", ".arrow": "arrow"}


class Found(NamedTuple):
    """What a path of shards stands for."""

    places: Sequence[Place]
    kind: Kind
    known: ShardIndex | None


def find_shards(path: str, config: StreamConfig) -> Found:
    """The shards that a path stands for; none of them is opened."""
    if remote.is_remote(path) and path.endswith(("/", f"/{INDEX}")):
        at = path if path.endswith(INDEX) else path + INDEX
        patience = patience_of(config)
        patience = patience._replace(retries=min(patience.retries, OPENING_RETRIES))
        return _indexed(at, remote.read(at, most=MAX_INDEX_BYTES, patience=patience))
    local = Path(path.removeprefix("file://")).expanduser()
    if not remote.is_remote(path) and (found := _index_at(local)):
        return _indexed(str(found), _read_local(found))
    addresses = _addresses(path, local)
    kinds = {kind_of(address) for address in addresses}
    if len(kinds) > 1:
        raise DataError(f"{path} holds shards of several kinds; name those of one kind: *.tar")
    kind = kinds.pop()
    if kind is None:
        raise DataError(f"{path} is no .tar, .parquet or .arrow file; name shards, or {INDEX}")
    return Found([Place(address) for address in addresses], kind, None)


def names_shards(path: str) -> bool:
    """Whether a path is one of shards; a folder is looked into."""
    if remote.is_remote(path):
        return True
    local = Path(path.removeprefix("file://")).expanduser()
    try:
        if local.is_dir():
            return _index_at(local) is not None or bool(_shards_in(local))
        return local.name == INDEX or kind_of(path) is not None
    except (OSError, ValueError):
        return False


def kind_of(path: str) -> Kind | None:
    """What kind of shard a file is by its name."""
    return ENDINGS.get(Path(path.split("?", 1)[0] if "://" in path else path).suffix.lower())


def expand_braces(pattern: str) -> list[str]:
    """`s-{000..003}.tar` as four names; several braces are combined."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if not 0 <= int(last) - int(first) < MAX_SHARDS:
        raise DataError(
            f"{pattern}: {{{first}..{last}}} must count upwards, by {MAX_SHARDS} at most"
        )
    heads = [
        f"{pattern[: match.start()]}{number:0{len(first)}d}"
        for number in range(int(first), int(last) + 1)
    ]
    tails = expand_braces(pattern[match.end() :])
    if len(heads) * len(tails) > MAX_SHARDS:
        raise DataError(f"{pattern} stands for more than {MAX_SHARDS} shards; name fewer")
    return [head + tail for head in heads for tail in tails]


def _addresses(path: str, local: Path) -> list[str]:
    if remote.is_remote(path):
        web = path.startswith(("http://", "https://"))
        addresses = expand_braces(path)
        if not web and re.search(r"[*?]", path):
            addresses = [one for pattern in addresses for one in expand(pattern)]
        elif "*" in path:
            raise DataError(f"{path}: a web server has no list of files; write {{000..099}}")
    elif local.is_dir():
        addresses = _shards_in(local)
        _refuse_mixture(local, addresses)
    else:
        addresses = []
        for pattern in expand_braces(str(local)):
            addresses += sorted(glob.glob(pattern)) if re.search(r"[*?\[]", pattern) else [pattern]
        missing = [one for one in addresses if not Path(one).is_file()]
        if missing:
            raise DataError(f"there is no file {missing[0]}; name shards that are there")
    if not addresses:
        raise DataError(f"{path} stands for no files; name shards that are there")
    if len(set(addresses)) < len(addresses):
        raise DataError(f"{path} names a shard twice; name each once")
    return addresses


def _shards_in(folder: Path) -> list[str]:
    files = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(str(path) for path in files if kind_of(path.name))


def _refuse_mixture(folder: Path, shards: Sequence[str]) -> None:
    images = Folder(folder).images
    if images:
        raise DataError(
            f"{folder} holds both shards ({Path(shards[0]).name}) and images ({images[0]}); "
            "separate them"
        )


def _index_at(local: Path) -> Path | None:
    """The index that a local path names, or that lies in the folder it names."""
    found = local / INDEX if local.is_dir() else local
    return found if found.name == INDEX and found.is_file() else None


def _read_local(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise DataError(f"{path} is larger than {MAX_INDEX_BYTES >> 20} MiB; restore it")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _indexed(at: str, data: bytes) -> Found:
    index = read_index(data, at)
    places = [Place(resolve(s.file, at), s.bytes, s.blake2b) for s in index.shards]
    kinds = {kind_of(place.address) for place in places}
    kind = kinds.pop()
    if kinds or kind is None:
        raise DataError(f"{at} names files that are not all .tar, .parquet or .arrow; restore it")
    return Found(places, kind, index)


def patience_of(config: StreamConfig) -> remote.Patience:
    """With networks."""
    return remote.Patience(retries=config.retries, timeout=config.timeout)
