"""The index of a set of shards: what is in each, so that any image of it can be found.

shards.json          what is in the set: `ShardIndex`
shard-000000.tar     images and labels in the WebDataset convention
shard-000001.tar     ...
"""

import json
import re
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from diffit.config import Settings, explain
from diffit.data.example import MAX_CLASSES
from diffit.errors import DataError

INDEX = "shards.json"
FORMAT: Literal["diffit-shards-1"] = "diffit-shards-1"
MAX_INDEX_BYTES = 1 << 28
"""Of an index: two million shards."""


class Shard(Settings):
    """One file of a set."""

    file: str
    """Its name, relative to the index, or an address."""
    images: int = Field(ge=0, lt=1 << 32)
    bytes: int = Field(ge=0)
    blake2b: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Checksum of its content, in hexadecimal digits."""


class ShardIndex(Settings):
    """What is in a set of shards."""

    format: Literal["diffit-shards-1"] = FORMAT
    images: int = Field(ge=1)
    """Of all shards."""
    shape: tuple[int, int, int] | None = None
    """(C, H, W) of every image, None where they differ."""
    classes: tuple[str, ...] = Field(default=(), max_length=MAX_CLASSES)
    """Names of the labels."""
    shards: tuple[Shard, ...] = Field(min_length=1)
    source: str = ""
    """What they were made of."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if sum(shard.images for shard in self.shards) != self.images:
            raise ValueError("images must be the sum of those of all shards")
        return self


def to_json(index: ShardIndex) -> bytes:
    """The bytes of the index file."""
    head = json.dumps({**index.model_dump(mode="json", exclude={"shards"})}, indent=1)
    lines = ",\n".join(json.dumps(shard.model_dump(mode="json")) for shard in index.shards)
    # A line for each shard: millions of them stay readable, and differences small.
    return f'{head[:-2]},\n "shards": [\n{lines}\n ]\n}}\n'.encode()


def read_index(data: bytes, where: str) -> ShardIndex:
    """The index in a file; DataError if it is none."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{where} is no valid JSON; restore it") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        told = content.get("format") if isinstance(content, dict) else None
        raise DataError(f"{where} is no index of shards of the format {FORMAT}, but {_short(told)}")
    try:
        index = ShardIndex.model_validate(content)
    except ValidationError as error:
        raise DataError(explain(error, ShardIndex, source=where)) from None
    for shard in index.shards:
        _check_name(shard.file, where)
    return index


def resolve(file: str, index_at: str) -> str:
    """Where a file named in the index at ``index_at`` lies."""
    if "://" in file:
        return file
    folder, slash, _ = index_at.rpartition("/")
    return f"{folder}{slash}{file}"


def _check_name(file: str, where: str) -> None:
    """DataError unless a name leads below the index, or to another host."""
    if re.match(r"(https?|s3|gs|az|abfs|hf)://", file):
        return
    if not file or file.startswith("/") or ".." in PurePosixPath(file).parts or ":" in file:
        raise DataError(f"{where} names the file {file!r}, which is outside its folder; restore it")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
