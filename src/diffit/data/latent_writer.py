"""Writing a cache of latents: shards whole or not at all, `latents.json` last."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from diffit.claims import turn
from diffit.data.images import write_atomic
from diffit.data.latent_range import Running
from diffit.data.latents import (
    INDEX,
    Facts,
    LatentIndex,
    LatentSet,
    Shard,
    moments,
    open_cache,
)
from diffit.errors import DataError

PER_SHARD = 1024
"""Images in a file: 32 MiB at 256 px in float16, with the mirrored ones."""


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"latents-{number:05d}.safetensors"


def write_tensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a safetensors file; a reader sees the whole file or none."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path} cannot be written: {reason}; make room and repeat the command to go on from "
            "there"
        ) from None


def read_tensors(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `write_tensors` wrote; None if there is no whole one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def begin(out: Path, plan: dict[str, Any]) -> Path:
    """The folder `OUT.partial` to work in, new or left by an interrupted call of the same plan."""
    refuse_taken(out)
    partial = out.with_name(out.name + ".partial")
    place = partial / "plan.json"
    try:
        with turn(lock_of(out)):  # several processes may begin at once
            refuse_taken(out)
            if not place.exists():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                write_atomic(place, json.dumps(plan, indent=1).encode())
        earlier = json.loads(place.read_bytes())
    except OSError as error:
        raise DataError(f"{partial} cannot be written: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{place} is damaged; remove {partial}") from None
    for key, value in plan.items():
        before = earlier.get(key) if isinstance(earlier, dict) else None
        if before != value:
            raise DataError(
                f"{partial} was begun with another {key} ({_short(before)}, now {_short(value)}); "
                "remove it or name another output"
            )
    return partial


def lock_of(out: Path) -> Path:
    """Claimed by the process that begins or finishes an output."""
    return out.with_name(f".{out.name}.claim")


def refuse_taken(out: Path) -> None:
    """DataError unless ``out`` is a free name in a folder that is there."""
    if out.exists():
        raise DataError(f"{out} exists already; name a new folder or remove it")
    if not out.absolute().parent.is_dir():
        raise DataError(f"there is no folder {out.parent}; make it first")


def finish(partial: Path, facts: Facts, shards: int, **rest: Any) -> LatentIndex:
    """Read the finished shards back for statistics and checksums, and write `latents.json`."""
    notes, running = [], Running(facts.shape[0])
    for number in range(shards):
        path = partial / shard_name(number)
        arrays = read_tensors(path)
        if arrays is None or not _fits(arrays, facts):
            path.unlink(missing_ok=True)
            raise DataError(f"{path} was damaged and has been removed; run the same command again")
        running.add(np.stack([moments(row, facts) for row in arrays["moments"]]))
        count = len(arrays["moments"])
        notes.append(
            Shard(file=path.name, images=count, bytes=path.stat().st_size, blake2b=checksum(path))
        )
    found = running.result()
    index = LatentIndex(
        codec=rest["codec"](found),
        shape=facts.shape,
        form=facts.form,
        pixels=facts.pixels,
        dtype=facts.dtype.name,
        mirrored=facts.mirrored,
        scaled_by=facts.scaled_by,
        count=facts.images,
        classes=facts.classes,
        statistics=found,
        shards=tuple(notes),
        source=rest["source"],
        versions=rest["versions"],
    )
    text = json.dumps(index.model_dump(mode="json"), indent=1) + "\n"
    write_atomic(partial / INDEX, text.encode())
    return index


def publish(partial: Path, out: Path) -> LatentSet:
    """Give a finished cache its name."""
    (partial / "plan.json").unlink(missing_ok=True)
    for left in (*partial.glob(".*.partial"), *partial.glob("*.claim")):  # of killed processes
        left.unlink(missing_ok=True)
    partial.replace(out)
    return open_cache(out)


def verify(latents: LatentSet) -> Iterator[str]:
    """For each shard of a cache a sentence if it is not as it was written, else nothing."""
    if latents.index is None:
        return
    for shard in latents.index.shards:
        path = latents.path / shard.file
        whole = checksum(path) == shard.blake2b
        yield "" if whole else f"{path} is damaged: its checksum does not match; restore it"


def checksum(file: Path) -> str:
    """BLAKE2b of a file's content, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def refuse_not_finite(values: np.ndarray, name: str) -> None:
    """DataError if the latent of image ``name`` is not finite."""
    if not np.isfinite(values).all():
        raise DataError(
            f"the latent of {name} is not finite; leave the image out, or encode with "
            "--codec-precision fp32 and --dtype float32"
        )


def _fits(arrays: dict[str, np.ndarray], facts: Facts) -> bool:
    wanted = {"moments", "index"} | ({"moments_flip"} if facts.mirrored else set())
    wanted |= {"labels"} if facts.classes else set()
    shaped = [arrays[name] for name in ("moments", "moments_flip") if name in arrays]
    return set(arrays) == wanted and all(
        array.shape[1:] == facts.stored_shape and array.dtype == facts.dtype for array in shaped
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
