"""Several processes on this machine, by PyTorch's own launcher (torchrun) as a library."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from diffit.distributed import LAUNCHER, place
from diffit.errors import UsageError

GRACE = 600
"""Seconds in which processes that are told to end may finish their step and write a checkpoint."""

HOME = "127.0.0.1"


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return place().world > 1


def launch(argv: Sequence[str], *, processes: int, max_restarts: int = 0, again: str) -> int:
    """Run `diffit ARGV` in so many processes; the exit code of all.

    They end with this process, and all of them when one fails; then all are started again, at most
    ``max_restarts`` times. Signals are passed on to them.

    Args:
        argv: arguments of the command, as each process reads them.
        processes: how many; each gets an equal share of the CPU's threads.
        max_restarts: how often they may be started again.
        again: what to do after a failure, as the end of a sentence.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Its own reports are tracebacks and tables; ours is a line.
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="diffit",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{HOME}:0",
        local_addr=HOME,
        max_restarts=max_restarts,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "diffit", *argv)
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        return _blame(codes, again)
    except SignalException as stopped:
        return 130 if stopped.sigval == signal.SIGINT else 0
    return 0


def _blame(codes: dict[int, int], again: str) -> int:
    """Say which process was killed; what ended with a sentence of its own has said it."""
    for rank, code in codes.items():
        if code < 0:
            name = signal.Signals(-code).name
            raise UsageError(f"process {rank} of the run was ended by {name}; {again}")
    return 2 if 2 in codes.values() else max(codes.values())


def _cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
