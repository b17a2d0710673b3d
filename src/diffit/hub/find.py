"""From what a user names to files on this machine: a path, or a hub id that is fetched."""

from dataclasses import replace
from pathlib import Path

from diffit.errors import CheckpointError
from diffit.fetch import HubId, in_folder_cache, listed, open_repository, parse_id
from diffit.hub.folder import CONFIG, is_hub_folder, read_folder


def find(text: str | Path) -> Path:
    """The folder or file that ``text`` means; a hub id is fetched first.

    Whatever exists on this machine wins over a repository of that name. A path that does not
    exist is returned as it is: who reads it has the words for that.
    """
    source = parse_id(text)
    if source is None:
        return Path(text)
    return fetch_file(source, source.file) if source.file else fetch_folder(source)


def fetch_folder(source: HubId) -> Path:
    """The hub-style folder of a repository; CheckpointError if it holds none."""
    if config := in_folder_cache(source, CONFIG):
        return config.parent
    repository = open_repository(source)
    if repository.files is not None and CONFIG not in repository.files:
        raise CheckpointError(_not_ours(source, listed(repository.files)))
    folder = repository.get(CONFIG).parent
    if not is_hub_folder(folder):
        raise CheckpointError(_not_ours(source, listed(repository.files or {})))
    # The cache calls the folder by its commit: the rest comes from the same one.
    pinned = replace(repository, revision=folder.name)
    names = list(read_folder(folder).files)
    pinned.prepare(names)
    for name in names:
        pinned.get(name)
    return folder


def fetch_file(source: HubId, file: str) -> Path:
    """One file of weights, with the configuration beside it if there is one."""
    if cached := in_folder_cache(source, file):
        return cached
    repository = open_repository(source)
    repository.prepare([file])
    path = repository.get(file)
    repository.verify(file, path)
    beside = (Path(file).parent / CONFIG).as_posix()
    if repository.has(beside):
        repository.get(beside)
    return path


def _not_ours(source: HubId, names: str) -> str:
    return (
        f"{source.repo} holds no model that diffit wrote; name one of its files of weights as "
        f"{source.repo}:FILE ({names})"
    )
