"""Many processes at one run: who this one is, and what all of them tell each other.

A launcher says who a process is: torchrun, or `diffit train --processes`, by RANK and WORLD_SIZE,
srun by the variables of its job step. Alone, every function here does nothing at no cost.
What is told goes over gloo on the CPU, tensors of a GPU over NCCL.
"""

import atexit
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from diffit.errors import DiffitError, UsageError

T = TypeVar("T")

PARTING = 0.2
"""Seconds that a process stays after it has parted from the others."""

LOST = 3
"""Exit code of a process that ends because another one has."""

LAUNCHER = "DIFFIT_LAUNCHER"
"""The number of the process of ours that launched this one; it says itself if one is lost."""

PATIENCE = timedelta(minutes=60)
"""How long a process waits for the others, which may be waiting for one that draws pictures."""


class LostError(DiffitError):
    """Another process of the same work has ended without a word."""


class Place(NamedTuple):
    """Who a process is among those that work together.

    Attributes:
        rank: its number, 0 the first.
        world: how many they are.
        local_rank: its number on its machine.
        local_world: how many there are on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def place() -> Place:
    """Who this process is, from the launcher's environment."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, world = _number(names[0]), _number(names[1])
        return Place(rank, world, _number(names[2], rank), _number(names[3], world))
    # Of the job step, not of the job: a batch script is one process, however many it may start.
    if "SLURM_PROCID" in os.environ and _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        rank, world = _number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS")
        on_machine = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        local_world = int(on_machine[0]) if on_machine else world
        return Place(rank, world, _number("SLURM_LOCALID"), local_world)
    return Place()


def rank() -> int:
    """Number of this process, 0 when it is alone."""
    return place().rank


def world() -> int:
    """How many processes work together, 1 when this one is alone."""
    return place().world


def local_rank() -> int:
    """Number of this process on its machine, 0 when it is alone."""
    return place().local_rank


def is_first() -> bool:
    """Whether this is the process that writes, prints and draws."""
    return rank() == 0


def restarted() -> bool:
    """Whether torchrun or SLURM has started this work again after it was ended."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(_number(name, 0) > 0 for name in counts)


def join() -> None:
    """Meet the other processes, once; nothing to do alone. UsageError if they cannot be found."""
    here = place()
    if here.world == 1 or dist.is_initialized():
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Ours says who it is: it may have been killed before this process came here.
        parent = _number(LAUNCHER, os.getppid())
        threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    try:
        store = next(rendezvous(_meeting(os.environ), here.rank, here.world, timeout=PATIENCE))[0]
        if here.local_world == here.world:
            # On one machine torchrun keeps its store from one start to the next, and with it the
            # addresses of the dead.
            attempt = _number("TORCHELASTIC_RESTART_COUNT", 0)
            store = dist.PrefixStore(f"start-{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(
            # Spelled out: a GPU's process needs gloo too, for what is told on the CPU.
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=here.rank,
            world_size=here.world,
            timeout=PATIENCE,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"process {here.rank} of {here.world} does not find the others: {reason}; start them "
            "with torchrun, with srun, or with `diffit train --processes`"
        ) from None
    atexit.register(leave)


def _end_with_parent(parent: int) -> None:
    """Follow a launcher that was killed: nobody else would ever end its processes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(LOST)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # A thread of gloo lets go of the tensors it sent last a moment later. An interpreter that
        # ends in that moment aborts: meshes keep the group, so that nobody waits for the thread.
        time.sleep(PARTING)


def _meeting(environment: Mapping[str, str]) -> str:
    """Where the processes meet: `env://` under torchrun, the first machine of a SLURM step."""
    if "RANK" in environment:
        return "env://"
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    # Two jobs on one machine get different ports, below those that systems lend to clients.
    port = environment.get("MASTER_PORT") or 16_384 + int(environment["SLURM_JOB_ID"]) % 16_384
    return f"tcp://{host}:{port}"


def first_host(hosts: str) -> str:
    """The first name in a SLURM list of hosts: `n[03-05,9],m1` -> `n03`."""
    found = re.match(r"([^,\[]+)(?:\[([0-9]+)[^\]]*\]([^,\[]*))?", hosts)
    if found is None:
        raise UsageError(f"SLURM_STEP_NODELIST {hosts!r} names no machine; set MASTER_ADDR")
    return "".join(part or "" for part in found.groups())


def barrier() -> None:
    """Wait until every process has come here."""
    if world() > 1:
        gather(None)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, the same bits for all; the argument stays as it is."""
    total = tensor.clone()
    if world() > 1:
        dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(sum_over_ranks(torch.tensor(int(flag))).item())


def gather(value: Any) -> list[Any]:
    """Every process's small value, in the order of their numbers: what JSON can hold."""
    if world() == 1:
        return [value]
    # JSON, and not the pickle of torch's own gather_object.
    return [json.loads(content) for content in gather_bytes(json.dumps(value).encode())]


def gather_bytes(own: bytes) -> list[bytes]:
    """Every process's bytes, in the order of their numbers."""
    if world() == 1:
        return [own]
    content = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(content)]))
    longest = int(max(sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(content)] = content
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world())]
    dist.all_gather(parts, padded)
    return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def gather_numbers(own: Tensor, *, most: int) -> list[Tensor]:
    """Every process's float64 numbers, on the CPU, in the order of the processes.

    Each has (n,) of them, with an n of its own of at most ``most``: one message is enough.
    """
    if world() == 1:
        return [own]
    framed = own.new_zeros(most + 1)
    framed[0], framed[1 : len(own) + 1] = len(own), own
    rows = [torch.empty_like(framed) for _ in range(world())]
    dist.all_gather(rows, framed)
    return [row[1 : int(row[0]) + 1] for row in rows]


@contextmanager
def agreed() -> Iterator[None]:
    """What any process refuses in here ends all of them, and the first says why.

    Nothing in here may wait for another process.
    """
    refusal: DiffitError | None = None
    try:
        yield
    except DiffitError as error:
        refusal = error
    reasons = [reason for reason in gather(refusal and str(refusal)) if reason is not None]
    if not reasons:
        return
    if not is_first():
        raise SystemExit(2)
    raise refusal or DiffitError(reasons[0])


def of_first(call: Callable[[], T]) -> T:
    """What a call gives in the first process, told to all; it is made there alone.

    A DiffitError of it ends all processes.
    """
    with agreed():
        value = call() if is_first() else None
    found: T = gather(value)[0]
    return found


@contextmanager
def noticing_losses(advice: str) -> Iterator[None]:
    """Turn what comes of the end of another process into one line, which ends in ``advice``."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not _is_loss(error):
            raise
        if not is_first() or LAUNCHER in os.environ:
            raise SystemExit(LOST) from None
        raise LostError(
            f"one of the {world()} processes has ended before the others, so all of them end; "
            + advice
        ) from None


def _is_loss(error: RuntimeError) -> bool:
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, kinds) or any(sign in str(error) for sign in signs)


def _number(name: str, default: int | None = None) -> int:
    value = os.environ.get(name, "" if default is None else str(default))
    if not value.isdigit():
        raise UsageError(f"the environment has {name}={value!r}, which is no number; unset it")
    return int(value)


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs of a machine, the one of its number."""
    if device.type != "cuda" or world() == 1:
        return device
    if local_rank() >= torch.cuda.device_count():
        raise UsageError(
            f"there are {place().local_world} processes on a machine with "
            f"{torch.cuda.device_count()} GPUs; start as many as there are GPUs"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps` as a device; UsageError where there is none."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is unknown; choose auto, cpu, cuda or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this PyTorch sees no Apple GPU; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name} is not supported; choose auto, cpu, cuda or mps")
    return device


def double(device: torch.device) -> torch.dtype:
    """float64 where the device has it, float32 on mps."""
    return torch.float32 if device.type == "mps" else torch.float64
