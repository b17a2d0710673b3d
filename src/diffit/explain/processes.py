"""Units of noisy copies in several processes, with the same results as in one.

Every unit is computed as a whole by one process and with one thread, and results come back in the
order of the jobs. So the bytes are those of `Smoothed.run` in a process of one thread.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from diffit.data.workers import end_with_parent
from diffit.errors import DiffitError, UsageError
from diffit.explain.smoothing import Job, MapSums, Smoothed, Votes

AHEAD = 2
"""Units that each process may be ahead of the one that is summed up."""

Open = Callable[[], Smoothed]
"""Opens classifier and denoiser; a function of a module, or `functools.partial` of one, so that
another process can be told of it."""

Part = Votes | MapSums


@contextlib.contextmanager
def in_processes(open_smoothed: Open, processes: int) -> Iterator[Callable[..., Iterator[Part]]]:
    """Processes that each open the classifier once; as long as the context lasts.

    Args:
        open_smoothed: called in each of them.
        processes: how many.

    Yields:
        What `predict`, `certify` and `mean_map` take as ``run``, for any number of images.
    """
    if processes < 1:
        raise UsageError(f"{processes} processes compute nothing; give at least 1")
    # spawn: a forked copy of a process with threads or a GPU may hang.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(open_smoothed,),
    )

    def run(jobs: Iterator[Job]) -> Iterator[Part]:
        waiting: deque[Future[Part]] = deque()
        try:
            for job in jobs:
                # As an array: a tensor would travel by a file descriptor of its own.
                waiting.append(pool.submit(_unit, job._replace(image=job.image.cpu().numpy())))
                if len(waiting) > AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UsageError(
                "a process that computes noisy images has died, perhaps for want of memory; "
                "repeat the command to continue, with fewer --processes"
            ) from None
        finally:
            for future in waiting:  # of a count that was decided early
                future.cancel()

    try:
        yield run
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_smoothed: Smoothed | DiffitError | None = None  # of this worker process


def _begin(open_smoothed: Open) -> None:
    global _smoothed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        _smoothed = open_smoothed()
    except DiffitError as error:  # told by the first job: here it would only be printed
        _smoothed = error


def _unit(job: Job) -> Part:
    if isinstance(_smoothed, DiffitError):
        raise _smoothed
    if _smoothed is None:
        raise RuntimeError("a worker was asked before it had its classifier")
    return _smoothed.unit(job._replace(image=torch.from_numpy(job.image)))
