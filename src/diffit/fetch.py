"""Files of hub repositories, by ids such as `owner/repo`, `owner/repo@v1`, `owner/repo:file`.

They come from the first place that has them: the folder cache (`$DIFFIT_CACHE/owner/repo/file`),
the cache of huggingface-hub, the hub itself (`$HF_ENDPOINT`; never if `$HF_HUB_OFFLINE` is set).
Only safetensors and JSON are fetched: neither can run code.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, constants, errors, hf_hub_download

from diffit.errors import CheckpointError

SAFE = (".safetensors", ".json")
WORTH_A_NOTE = 100_000_000
PATIENCE_S = 10
LISTED = 8
"""Files of a repository that a message names."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[^:]+))?")

UNREACHABLE: tuple[type[Exception], ...] = (getattr(errors, "HTTPError", OSError), OSError)
"""What huggingface-hub raises if there is no answer, with whichever HTTP library it uses."""


class HubId(NamedTuple):
    """A repository on the hub, or a file in it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repo + revision + (f":{self.file}" if self.file else "")


class RemoteFile(NamedTuple):
    """What the hub says of a file; it knows the sha256 of large ones."""

    bytes: int | None
    sha256: str | None


def parse_id(text: str | Path) -> HubId | None:
    """The hub id that ``text`` is; None if it names a place on this machine, there or not.

    What exists here is never an id, nor is what would lie in a folder that exists.
    """
    path = Path(text)
    match = _ID.fullmatch(path.as_posix() if isinstance(text, Path) else text)
    if match is None or path.exists() or Path(path.parts[0]).exists():
        return None
    return HubId(**match.groupdict())


def cache_folder() -> Path:
    """Where downloads go: $DIFFIT_CACHE, else $XDG_CACHE_HOME/diffit, else ~/.cache/diffit."""
    if own := os.environ.get("DIFFIT_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "diffit"


def in_folder_cache(source: HubId, file: str) -> Path | None:
    """A file in the folder cache, which knows no revisions; None if it is not there."""
    path = cache_folder() / source.repo / file
    return path if source.revision is None and path.is_file() else None


@dataclass(frozen=True)
class Repository:
    """One state of a repository.

    Attributes:
        source: the id by which it was asked for.
        revision: a commit, tag or branch; None for the main branch.
        files: what it holds; None if the hub cannot be asked, so that only the cache is left.
        silence: why the hub cannot be asked.
    """

    source: HubId
    revision: str | None
    files: Mapping[str, RemoteFile] | None
    silence: str = ""

    def get(self, file: str) -> Path:
        """A file of it, fetched if need be; CheckpointError if that cannot be."""
        if not file.endswith(SAFE):
            raise CheckpointError(
                f"{self.source.repo}:{file}: only .safetensors and .json are fetched, since other "
                "files may run code; if you trust it, fetch it yourself and name the file"
            )
        if self.files is not None and file not in self.files:
            raise CheckpointError(
                f"{self.source.repo} has no file {file!r}; it has {listed(self.files)}"
            )
        return self._fetch(file)

    def get_card(self, file: str) -> Path | None:
        """The model card, a text for people; None if there is none."""
        if self.files is not None and file not in self.files:
            return None
        try:
            return self._fetch(file)
        except CheckpointError:
            return None

    def _fetch(self, file: str) -> Path:
        try:
            found = hf_hub_download(
                self.source.repo,
                file,
                revision=self.revision,
                endpoint=endpoint(),
                local_files_only=self.files is None,
            )
        except errors.LocalEntryNotFoundError:
            raise CheckpointError(self._missing_offline(file)) from None
        except UNREACHABLE as error:
            raise CheckpointError(
                f"{self.source.repo}: {file} could not be fetched ({_reason(error)}); repeat the "
                "command to go on"
            ) from None
        return Path(found)

    def has(self, file: str) -> bool:
        """Whether it holds a file, as far as can be known."""
        if self.files is not None:
            return file in self.files
        try:
            self.get(file)
        except CheckpointError:
            return False
        return True

    def prepare(self, files: list[str]) -> None:
        """Say how much is about to be fetched; CheckpointError if there is no room for it."""
        new = [f for f in files if self.files and f in self.files and not self._cached(f)]
        total = sum((self.files or {})[file].bytes or 0 for file in new)
        place = Path(constants.HF_HUB_CACHE)
        there = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(there).free
        if total > free:
            raise CheckpointError(
                f"{self.source.repo} takes {total / 1e9:.1f} GB, but {there} has {free / 1e9:.1f} "
                "GB left; make room, or choose another disk with HF_HOME"
            )
        if total >= WORTH_A_NOTE:
            warnings.warn(
                f"fetching {total / 1e9:.1f} GB of {self.source.repo} into {place}", stacklevel=3
            )

    def verify(self, file: str, path: Path) -> None:
        """CheckpointError if a fetched file is not what the hub says it is, where it says so."""
        # The cache calls large files by their sha256, which also helps without a connection.
        told = self.files[file].sha256 if self.files else path.resolve().name
        if told and re.fullmatch(r"[0-9a-f]{64}", told) and file_sha256(path) != told:
            raise CheckpointError(
                f"{path} is damaged: its checksum is not that of {self.source.repo}; remove "
                f"{path.resolve()} and fetch it again"
            )

    def _cached(self, file: str) -> bool:
        try:
            hf_hub_download(self.source.repo, file, revision=self.revision, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            return False
        return True

    def _missing_offline(self, file: str) -> str:
        place = cache_folder() / self.source.repo
        way = f"fetch it elsewhere with `diffit hub pull {self.source.repo} OUT` and"
        if self.source.file:
            place, way = place / file, "fetch it elsewhere and"
        return (
            f"there is no folder {self.source.repo} here, {file} of a repository of that name is "
            f"not in the cache, and the hub cannot be asked ({self.silence}); {way} put it at "
            f"{place}"
        )


def open_repository(source: HubId) -> Repository:
    """What the hub says of a repository; CheckpointError if it has none of that name."""
    if offline():
        return Repository(source, source.revision, None, "HF_HUB_OFFLINE is set")
    address = f"{endpoint()}/{source.repo}"
    try:
        info = HfApi(endpoint=endpoint()).model_info(
            source.repo, revision=source.revision, files_metadata=True, timeout=PATIENCE_S
        )
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{source.repo} asks for its conditions to be accepted: do so at {address}, then "
            "`hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{source.repo} has no revision {source.revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no folder {source.repo} here and no {address}; if that is private, "
            "`hf auth login` first"
        ) from None
    except errors.HFValidationError as error:
        raise CheckpointError(f"{source.repo} names no repository: {_reason(error)}") from None
    except UNREACHABLE as error:
        return Repository(source, source.revision, None, _reason(error))
    files = {
        file.rfilename: RemoteFile(file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or []
    }
    return Repository(source, source.revision, files)


def first_of(
    source: HubId, files: Sequence[str], *, way_out: str, download: bool = True
) -> Path | None:
    """The first of these files that a repository has, from the caches, else over the network.

    Args:
        source: the repository.
        files: names, the best first.
        way_out: ends the sentence of a `CheckpointError` where the hub cannot be asked.
        download: ask the hub for what no cache has; without, None says that none has any.
    """
    for file in files:
        if cached := in_folder_cache(source, file):
            return cached
    cache = Repository(source, source.revision, None)
    for file in files:
        if cache.has(file):
            return cache.get(file)
    if not download:
        return None
    repository = open_repository(source)
    if repository.files is None:
        raise CheckpointError(
            f"{source} is not in the cache of this machine, and the hub cannot be asked "
            f"({repository.silence}); {way_out}"
        )
    file = next((file for file in files if repository.has(file)), "")
    if not file:
        return None
    repository.prepare([file])
    fetched = repository.get(file)
    repository.verify(file, fetched)
    return fetched


def endpoint() -> str:
    """Address of the hub."""
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def offline() -> bool:
    """Whether the user wants no connections."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def listed(files: Mapping[str, RemoteFile]) -> str:
    """The files of weights in a repository, the first of many."""
    names = sorted(name for name in files if name.endswith(".safetensors"))
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more if names else "no .safetensors at all"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *, most: int = 16 << 20) -> dict[str, Any]:
    """The JSON object in a file of somebody else, of ``most`` bytes; CheckpointError if none is."""
    try:
        if path.stat().st_size > most:
            raise CheckpointError(
                f"{path} is larger than {most >> 20} MiB, too large for a configuration"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; fetch it again") from None
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path} cannot be read as JSON; fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no settings by name; fetch it again")
    return content


def _reason(error: Exception) -> str:
    """The first line of what went wrong, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
