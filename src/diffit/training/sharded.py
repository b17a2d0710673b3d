"""Checkpoints that all processes of a run write together, in the background.

Each process writes the pieces of the tensors that it holds, by torch.distributed.checkpoint and as
safetensors; the first one adds the rest and renames the folder into place. Training goes on in the
meantime. Whether it succeeded, all processes learn at the same moment: when the next checkpoint
begins, or at the end.
"""

import copy
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from torch import Tensor

from diffit import sealed
from diffit.errors import CheckpointError, ConfigError

dcp: Any = torch.distributed.checkpoint  # its stubs leave out what it documents

Sets = Mapping[str, Mapping[str, Tensor]]
"""Name of each set (`model`, `optimizer`, `ema-0.9999`) -> its tensors, sharded or not."""


def refuse_old_torch() -> None:
    """ConfigError where torch.distributed.checkpoint writes no pieces as safetensors."""
    if not hasattr(dcp, "HuggingFaceStorageWriter"):
        raise ConfigError(
            f"sharded checkpoints need PyTorch 2.8 or later, this is {torch.__version__}; "
            "set train.parallel.write whole"
        )


class ShardWriter:
    """Writes one checkpoint at a time; made and called by all processes alike.

    A process group of its own keeps what the background says apart from what the steps say.
    """

    def __init__(self) -> None:
        refuse_old_torch()
        self._group = dist.new_group(backend="gloo")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def start(
        self,
        folder: Path,
        *,
        config: str,
        sets: Sets,
        state: Mapping[str, Any],
        then: Callable[[], None],
    ) -> None:
        """Begin a checkpoint; tensors and state may change as soon as this returns.

        Args:
            folder: where it will be; an old one of that name is replaced.
            config: content of `config.yaml`.
            sets: this process's view of all tensors.
            state: what else belongs to this moment.
            then: what the first process does once it is in place.

        Raises:
            CheckpointError: if the one before could not be written.
        """
        self.wait()
        part = folder.with_name(f".{folder.name}.part")
        # Nobody may write before the folder is there.
        _refuse(_told(_make(part) if dist.get_rank() == 0 else None, self._group)[0], folder)
        writing = _save(part, sets, self._group)
        moment = copy.deepcopy(dict(state))
        finish = _Finish(folder, part, config, moment, tuple(sets), then, self._group)
        self._pending = self._pool.submit(finish, writing)

    def wait(self) -> Path | None:
        """The checkpoint that has been written meanwhile; CheckpointError if it could not be.

        None if none was begun since.
        """
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def close(self) -> None:
        """End the thread, after what it is writing."""
        self._pool.shutdown()


def _save(part: Path, sets: Sets, group: dist.ProcessGroup) -> Future[Any]:
    tensors = {f"{name}/{key}": t for name, kept in sets.items() for key, t in kept.items()}
    number = {name: i for i, name in enumerate(sets, 1)}
    # One file a set and process, so that sampling need not look at the optimiser.
    files = {key: number[key.partition("/")[0]] for key in tensors}
    writer = dcp.HuggingFaceStorageWriter(
        str(part), fqn_to_index_mapping=files, save_distributed=True
    )
    future: Future[Any] = dcp.async_save(tensors, storage_writer=writer, process_group=group)
    return future


def _make(part: Path) -> "_Trouble | None":
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        return _Trouble.of(error)
    return None


class _Trouble(NamedTuple):
    """Why writing failed, in a form that other processes can be told."""

    text: str
    number: int | None

    @classmethod
    def of(cls, error: BaseException) -> Self:
        found = _os_error(error)
        text = str(error) if found is None else found.strerror or str(found)
        return cls(text, None if found is None else found.errno)

    @property
    def error(self) -> Exception:
        return OSError(self.number, self.text) if self.number else CheckpointError(self.text)


@dataclass(frozen=True)
class _Finish:
    """What follows the pieces; runs in the background thread of each process."""

    folder: Path
    part: Path
    config: str
    state: Mapping[str, Any]
    sets: tuple[str, ...]
    then: Callable[[], None]
    group: dist.ProcessGroup

    def __call__(self, writing: Future[Any]) -> Path:
        trouble: _Trouble | None = None
        notes: dict[str, Any] = {}
        try:
            writing.result()
            notes = self._notes()
        except BaseException as error:  # PyTorch's own is no Exception; all must hear
            trouble = _Trouble.of(error)
        told = _told((trouble, notes), self.group)
        trouble = next((other for other, _ in told if other), None)
        if dist.get_rank() == 0 and trouble is None:
            trouble = self._seal({name: note for _, mine in told for name, note in mine.items()})
        trouble = _told(trouble, self.group)[0]
        if trouble is not None:
            shutil.rmtree(self.part, ignore_errors=True)
        _refuse(trouble, self.folder)
        return self.folder

    def _notes(self) -> dict[str, Any]:
        mine = sorted(self.part.glob(f"shard-{dist.get_rank() + 1:05d}-*"))
        return {file.name: sealed.note(file) for file in mine}

    def _seal(self, notes: Mapping[str, Mapping[str, Any]]) -> _Trouble | None:
        pieces = {
            name: sorted(file for file in notes if f"-model-{i:05d}-of-" in file)
            for i, name in enumerate(self.sets, 1)
        }
        try:
            state = {**self.state, "pieces": pieces}
            sealed.describe(self.part, config=self.config, state=state, notes=notes)
            sealed.settle(self.part, self.folder)
            self.then()
        except (OSError, CheckpointError) as error:
            return _Trouble.of(error)
        return None


def _told(mine: Any, group: dist.ProcessGroup) -> list[Any]:
    """What each process says."""
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, mine, group=group)
    return told


def _refuse(trouble: _Trouble | None, folder: Path) -> None:
    if trouble is not None:
        text = f"{folder} could not be written: {trouble.text}"
        raise CheckpointError(text) from trouble.error


def _os_error(error: BaseException) -> OSError | None:
    """What the operating system said, from under what PyTorch wraps it in."""
    if isinstance(error, OSError):
        return error
    # A CheckpointException of PyTorch has an error and its traceback for each process.
    wrapped = [failure[0] for failure in getattr(error, "failures", {}).values()]
    for other in (*wrapped, error.__cause__):
        if other is not None and (found := _os_error(other)):
            return found
    number = sealed.number_in(str(error))
    return OSError(number, os.strerror(number)) if number else None
