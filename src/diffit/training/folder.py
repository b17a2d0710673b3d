"""The folder of a run: its files, and the lock that keeps a second process out."""

import contextlib
import errno
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from diffit import __version__
from diffit.config import read_yaml, to_yaml
from diffit.errors import CheckpointError, UsageError
from diffit.training.settings import RunConfig

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
BEFORE = {"lock", "carried.json"}
"""What there may be of a run that ended before it had a configuration."""


def is_run(folder: Path) -> bool:
    """Whether `diffit train` wrote this folder."""
    # A checkpoint has a configuration too, but beside it the state that belongs to one moment.
    return (folder / CONFIG).is_file() and not (folder / "state.json").exists()


def refuse_taken(out: Path) -> None:
    """UsageError unless ``out`` is free for a new run, or one was begun there and did nothing."""
    if has_begun(out):
        raise UsageError(
            f"--out {out} holds a run already; continue it with `diffit train --resume {out}` "
            "or name a new folder"
        )
    if is_run(out):
        return
    if out.exists() and (not out.is_dir() or {file.name for file in out.iterdir()} - BEFORE):
        raise UsageError(f"--out {out} exists and is no run; name a new folder")


def has_begun(run: Path) -> bool:
    """Whether a run has something to lose: a first batch that cannot be read ends it before."""
    metrics = run / METRICS
    if not is_run(run):
        return False
    return (run / "checkpoints").exists() or (metrics.exists() and metrics.stat().st_size > 0)


def refuse_no_run(run: Path) -> None:
    """UsageError unless ``run`` is a run that can be resumed."""
    if not is_run(run):
        raise UsageError(f"--resume {run} is no folder of a run; name one that `diffit train` made")


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's lock; UsageError if another process does. A killed process frees it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise UsageError(f"--out {run} cannot be made: {reason}; name another folder") from None
    with (run / "lock").open("a+") as file:
        if not _lock(file):
            raise UsageError(f"another process is at work in {run}; wait for it or end it first")
        yield


def _lock(file: IO[str]) -> bool:
    """Take the operating system's lock on an open file, which it frees when the process ends."""
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def full_disk_in_one_line(run: Path, again: str = "") -> Iterator[None]:
    """Turn "no space left" into a sentence that says how to go on: with the command ``again``."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        cause = error.__cause__ if isinstance(error, CheckpointError) else error
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not isinstance(cause, OSError) or cause.errno not in full:
            raise
        raise UsageError(
            f"{run} cannot be written: {cause.strerror}; make room and continue with "
            + (again or f"`diffit train --resume {run}`")
        ) from None


def write_run(run: Path, config: RunConfig, device: torch.device) -> None:
    """Write the resolved configuration, and note with what it was computed."""
    write_whole(run / CONFIG, to_yaml(config))
    path = run / "environment.json"
    try:
        started = list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
    except (ValueError, TypeError):
        raise CheckpointError(f"{path} is damaged; remove it and repeat the command") from None
    write_whole(path, json.dumps([*started, _environment(device)], indent=1) + "\n")


def read_run(run: Path) -> dict[str, Any]:
    """The settings of a run as they are written in its folder."""
    return read_yaml(run / CONFIG)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader finds the old or the new text, never a part."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _environment(device: torch.device) -> dict[str, Any]:
    """What the bits of a result depend on beside the configuration."""
    return {
        "diffit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": str(device),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }
