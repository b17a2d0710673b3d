"""Draw the missing images of a plan, in this process or in several.

Each process claims whole units and computes them with the same number of threads, so that the bytes
do not depend on how many there are.
"""

import contextlib
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

import torch

from diffit.checkpoint import load
from diffit.errors import DiffitError, UsageError
from diffit.generation import AUTOCAST
from diffit.model import Model
from diffit.samplers import SAMPLERS
from diffit.samples import Plan, Weights, weights_of
from diffit.work import OvertakenError, claimed, draw_unit

Tell = Callable[[float], None]
"""Told how much further the drawing is, in units."""


def draw_here(
    plan: Plan, out: Path, todo: Sequence[int], models: tuple[Model, Model | None], tell: Tell
) -> None:
    """Draw units of a plan with the model and the reference that are loaded already.

    Ends when all of them are drawn, by this process or another.
    """
    model, reference = models
    share = 1 / SAMPLERS[plan.sampling.sampler].evaluations(
        plan.sampling.steps, to_zero=plan.sampling.to_zero
    )
    with threads(plan.threads), contextlib.closing(claimed(out, plan, todo)) as units:
        for unit in units:
            with contextlib.suppress(OvertakenError):
                draw_unit(
                    model, unit, plan, out, reference=reference, on_step=lambda *_: tell(share)
                )


def draw_in_processes(
    plan: Plan, out: Path, todo: Sequence[int], processes: int, tell: Tell
) -> None:
    """Draw units of a plan in new processes that each load the model themselves."""
    workers = [_start(plan, out, todo) for _ in range(min(processes, len(todo)))]
    try:
        _follow({pipe for pipe, _ in workers}, tell)
    finally:
        # Whatever happened: nothing is lost by ending a worker, since files appear whole.
        for pipe, process in workers:
            process.terminate()
            process.join()
            pipe.close()


def load_models(plan: Plan) -> tuple[Model, Model | None]:
    """The model of a plan, and the reference if it has one."""
    model = _load(plan, plan.weights)
    model.set_codec(plan.codec)
    return model, None if plan.reference is None else _load(plan, plan.reference)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load(plan: Plan, weights: Weights) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who made the plan was told already
        model = load(
            weights.checkpoint,
            weights=weights.name,
            device=plan.device,
            matrices=AUTOCAST[plan.sampling.precision],
        )
    if weights_of(model).hash != weights.hash:
        raise UsageError(f"{weights.checkpoint} has changed while it was in use; start again")
    return model


def _start(plan: Plan, out: Path, todo: Sequence[int]) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(plan, out, tuple(todo), theirs), daemon=True)
    with _interrupts_ignored():
        process.start()
    theirs.close()  # so that the end of the worker is the end of the pipe
    return ours, process


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started in here never sees Ctrl-C; its parent does, and ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(waiting: set[Connection], tell: Tell) -> None:
    """Listen to the workers until all have finished; UsageError if one could not."""
    while waiting:
        for pipe in cast(list[Connection], wait(list(waiting))):
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                raise UsageError(
                    "a worker process ended before its work was done, perhaps for want of memory; "
                    "repeat the command to continue, with fewer --processes"
                ) from None
            if isinstance(message, str):
                raise UsageError(message)
            if message is None:
                waiting.discard(pipe)
            else:
                tell(message)


def _work(plan: Plan, out: Path, todo: Sequence[int], pipe: Connection) -> None:
    """The life of a worker: how much further it is, then None; or one sentence why it stopped."""
    # A dead parent breaks the pipe: then nobody waits for the rest.
    with contextlib.suppress(BrokenPipeError):
        try:
            draw_here(plan, out, todo, load_models(plan), pipe.send)
        except (DiffitError, ValueError) as error:
            pipe.send(str(error))
        else:
            pipe.send(None)
