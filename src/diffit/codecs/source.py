"""Where an autoencoder lies: a folder in diffusers' layout, or a repository of the hub.

`config.json` says what it is; the weights are `diffusion_pytorch_model.safetensors`, or the parts
that `diffusion_pytorch_model.safetensors.index.json` lists. Nothing else is read, and no pickle.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffit.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"
HALF = "diffusion_pytorch_model.fp16.safetensors"
"""What some repositories hold instead: the same in half precision."""

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<inside>[\w./-]+))?")
"""OWNER/REPOSITORY, or OWNER/REPOSITORY/FOLDER for one inside."""

MAX_JSON_BYTES = 1 << 20
WAY_OUT = "name a folder that holds it, with --codec or --model.codec.path"


def read_config(path: str) -> dict[str, Any]:
    """The content of an autoencoder's `config.json`; CheckpointError if there is none."""
    found = _find(path, CONFIG)
    if found is None:
        pipeline = _find(path, "model_index.json") is not None
        way = f"that of a whole pipeline lies in {path.rstrip('/')}/vae" if pipeline else WAY_OUT
        raise CheckpointError(f"{path} is no autoencoder: it has no {CONFIG}; {way}")
    return _read_json(found)


def weight_files(path: str) -> list[Path]:
    """The safetensors files of an autoencoder; CheckpointError if there are none."""
    for name in (WEIGHTS, HALF):
        if found := _find(path, name):
            return [found]
    index = _find(path, INDEX)
    if index is None:
        raise CheckpointError(
            f"{path} has no {WEIGHTS}; other formats are not read, since they could run code: "
            "write it anew with diffusers' save_pretrained"
        )
    names = _parts(index)
    files = {name: _find(path, name) for name in names}
    if lost := [name for name in names if files[name] is None]:
        raise CheckpointError(f"{path} has no {lost[0]}, which its {INDEX} lists; fetch it again")
    return [file for file in files.values() if file is not None]


def digest(files: Sequence[Path]) -> str:
    """The sha256 of the files' bytes, one after another."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def _parts(index: Path) -> list[str]:
    """The files that an index lists, each of them a plain name."""
    table = _read_json(index).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names or not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise CheckpointError(f"{index} lists no safetensors files; fetch the folder again")
    return names


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{file} is larger than 1 MiB, too large for a configuration")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{file} cannot be read as JSON; fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no settings by name; fetch it again")
    return content


def _find(path: str, name: str) -> Path | None:
    """A file of the folder or hub repository ``path``; None if there is no such file in it."""
    folder = Path(path).expanduser()
    if path and folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if not folder.exists() and (parts := HUB_ID.fullmatch(path)):
        return _fetch(parts["repository"], parts["inside"], name)
    what = f"{path} is a file" if folder.is_file() else f"there is no autoencoder at {path!r}"
    raise CheckpointError(
        f"{what}; name a folder in diffusers' layout, or a hub id such as stabilityai/sd-vae-ft-ema"
    )


def _fetch(repository: str, inside: str | None, name: str) -> Path | None:
    """A file of a hub repository: from the cache of this machine, else over the network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def get(cached: bool) -> Path:
        return Path(
            hf_hub_download(repository, name, subfolder=inside or None, local_files_only=cached)
        )

    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            return get(True)
        return get(False)
    except LocalEntryNotFoundError:
        reason = "is not in the cache of this machine, and the hub cannot be reached"
    except EntryNotFoundError:
        return None
    except GatedRepoError:
        reason = "asks you to accept its terms: do so on its page, and log in with `hf auth login`"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "is no public repository of the hub"
    except (HfHubHTTPError, OSError) as error:
        reason = f"cannot be fetched ({str(error).splitlines()[0]})"
    raise CheckpointError(f"{repository} {reason}; {WAY_OUT}")
