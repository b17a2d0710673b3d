"""Where an autoencoder lies: a folder in diffusers' layout, or a repository of the hub, as
`owner/repo`, `owner/repo@revision`, or `owner/repo:vae` for a folder inside.

`config.json` says what it is; the weights are `diffusion_pytorch_model.safetensors`, or the parts
that `diffusion_pytorch_model.safetensors.index.json` lists. Nothing else is read, and no pickle.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffit.errors import CheckpointError
from diffit.fetch import first_of, parse_id, read_json

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"
HALF = "diffusion_pytorch_model.fp16.safetensors"
"""What some repositories hold instead: the same in half precision."""

MAX_JSON_BYTES = 1 << 20
WAY_OUT = "name a folder that holds it, with --codec or --model.codec.path"


def read_config(path: str) -> dict[str, Any]:
    """The content of an autoencoder's `config.json`; CheckpointError if there is none."""
    found = _find(path, CONFIG)
    if found is None:
        pipeline = _find(path, "model_index.json") is not None
        inside = f"{path.rstrip('/')}/vae" if Path(path).expanduser().is_dir() else f"{path}:vae"
        way = f"that of a whole pipeline lies in {inside}" if pipeline else WAY_OUT
        raise CheckpointError(f"{path} is no autoencoder: it has no {CONFIG}; {way}")
    return read_json(found, most=MAX_JSON_BYTES)


def weight_files(path: str) -> list[Path]:
    """The safetensors files of an autoencoder; CheckpointError if there are none."""
    found = _find(path, WEIGHTS, HALF, INDEX)
    if found is None:
        raise CheckpointError(
            f"{path} has no {WEIGHTS}; other formats are not read, since they could run code: "
            "write it anew with diffusers' save_pretrained"
        )
    return _parts(path, found) if found.name == INDEX else [found]


def digest(files: Sequence[Path]) -> str:
    """The sha256 of the files' bytes, one after another."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def _parts(path: str, index: Path) -> list[Path]:
    """The files that an index lists, each of them a plain name."""
    table = read_json(index, most=MAX_JSON_BYTES).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names or not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise CheckpointError(f"{index} lists no safetensors files; fetch the folder again")
    files = []
    for name in names:
        found = _find(path, name)
        if found is None:
            raise CheckpointError(f"{path} has no {name}, which its {INDEX} lists; fetch it again")
        files.append(found)
    return files


def _find(path: str, *names: str) -> Path | None:
    """The first of these files that the folder or hub repository ``path`` has; None if none."""
    folder = Path(path).expanduser()
    if path and folder.is_dir():
        return next((folder / name for name in names if (folder / name).is_file()), None)
    if source := parse_id(path):
        files = [f"{source.file}/{name}" if source.file else name for name in names]
        return first_of(source, files, way_out=WAY_OUT)
    what = f"{path} is a file" if folder.is_file() else f"there is no autoencoder at {path!r}"
    raise CheckpointError(
        f"{what}; name a folder in diffusers' layout, or a hub id such as stabilityai/sd-vae-ft-ema"
    )
