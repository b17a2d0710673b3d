"""Training, told in order: data, state, steps; after some of them a line, a checkpoint, a picture.

A run is a folder. Whatever ends it (Ctrl-C, a kill, a full disk), `resume=True` continues from its
newest intact checkpoint as if nothing had happened, on the CPU bit for bit.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from diffit.checkpoint import checkpoint_folder, recommended
from diffit.data import Dataset
from diffit.data.loader import Loader
from diffit.data.stream import StreamLoader
from diffit.distributed import (
    agreed,
    barrier,
    gather,
    is_first,
    join,
    noticing_losses,
    own_device,
    world,
)
from diffit.errors import CheckpointError, DataError, DiffitError
from diffit.model import Model, build_model
from diffit.networks.count import count_parameters
from diffit.training.batches import described, index_of, open_loader, passed_over, positions
from diffit.training.console import ConsoleLine
from diffit.training.distill import Teacher, open_teacher
from diffit.training.folder import (
    METRICS,
    full_disk_in_one_line,
    locked,
    refuse_no_run,
    refuse_taken,
    write_run,
)
from diffit.training.gauges import Gauges
from diffit.training.inputs import Ahead, Inputs, draw_inputs
from diffit.training.interrupts import Interrupts
from diffit.training.journal import Journal
from diffit.training.optim import learning_rate, set_rate
from diffit.training.prepare import (
    begin,
    build_objective,
    complete,
    open_training_data,
    refuse_parallel,
)
from diffit.training.recorder import Rewind, judge, record, refuse_many
from diffit.training.settings import RunConfig, TrainConfig
from diffit.training.sharded import ShardWriter, refuse_old_torch
from diffit.training.shards import Whole
from diffit.training.state import State, begin_pieces, save_averages, save_state
from diffit.training.step import Objective, arithmetic
from diffit.training.trouble import note_trouble
from diffit.training.upload import Uploads, open_target
from diffit.training.writers import open_writers, refuse_missing

__all__ = ["OnSnapshot", "Outcome", "RunConfig", "Snapshot", "TrainConfig", "train"]


class Snapshot(NamedTuple):
    """What pictures of a run's progress are made of.

    Attributes:
        run: folder of the run.
        folder: where the pictures of this moment go; it does not exist yet.
        images: seen so far.
        model: with the weights that the run recommends.
        dataset: the real images.
        config: of the run.
    """

    run: Path
    folder: Path
    images: int
    model: Model
    dataset: Dataset
    config: RunConfig


OnSnapshot = Callable[[Snapshot], None]
Reason = Literal["done", "time", "interrupted", "terminated"]

OUT_OF_TIME = -1
"""What the first process tells the others when the time is used up; they tell signals."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        reason: all images seen, time used up, interrupted by Ctrl-C, or told to end by SIGTERM.
        images: seen by the run.
        seconds: in training, over all parts of the run.
    """

    reason: Reason
    images: int
    seconds: float


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    on_snapshot: OnSnapshot | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train a model in a folder.

    Every process of a group calls it alike, see `diffit.distributed`; the first one writes.

    Args:
        config: what to train, on what, how.
        out: folder of the run: a free name, or with ``resume`` the run to continue.
        resume: continue from the newest intact checkpoint.
        device: where to compute; of several GPUs each process takes the one of its number.
        on_snapshot: draws pictures from time to time, and at the end, in the first process.
        quiet: show nothing on the console.
    """
    join()
    with ExitStack() as stack:
        with agreed():
            dataset, config, device, teacher = _prepare(config, out, device, resume=resume)
            if is_first():
                stack.enter_context(locked(out))
        stack.enter_context(full_disk_in_one_line(out))
        stack.enter_context(noticing_losses(f"continue with `diffit train --resume {out}`"))
        stack.enter_context(
            arithmetic(device, tf32=config.train.tf32, threads=config.train.threads)
        )
        interrupts = stack.enter_context(Interrupts())
        start = _Start(config, out, dataset, device, on_snapshot, teacher, quiet)
        passed: list[int] = []
        while True:
            try:
                return _go_on(start, interrupts, resume=resume or bool(passed), passed=passed)
            except Rewind as rewind:
                passed.append(rewind.images)


class _Start(NamedTuple):
    """What a run begins with, and begins with again after it has gone back."""

    config: RunConfig
    out: Path
    dataset: Dataset
    device: torch.device
    on_snapshot: OnSnapshot | None
    teacher: Teacher | None
    quiet: bool


def _go_on(
    start: _Start, interrupts: Interrupts, *, resume: bool, passed: Sequence[int]
) -> Outcome:
    """Step from the newest checkpoint on, or from the beginning.

    Args:
        start: what is trained.
        interrupts: signals.
        resume: look for a checkpoint.
        passed: images before each batch over which steps have broken out since the run was started.
    """
    config, out, dataset, device, on_snapshot, teacher, quiet = start
    with ExitStack() as stack:
        state, notes = begin(config, out, device, resume=resume)
        state.passed = sorted({*state.passed, *passed})
        refuse_many(state, passed, config.train.max_bad_steps)
        if is_first() and not passed:
            write_run(out, config, device)
        if passed:
            notes.append(f"goes back to {state.images:,} images")
        journal = stack.enter_context(open_journal(config, out, state, quiet=quiet))
        for note in [*notes, *([teacher.described] if teacher else [])]:
            journal.say(note)
        uploads = None
        if config.train.upload and is_first():
            uploads = stack.enter_context(closing(Uploads(config.train.upload, journal.say)))
        writer = None
        if config.train.parallel.in_pieces:
            writer = stack.enter_context(closing(ShardWriter()))
        loader = open_loader(config, dataset, start=state.images, streams=state.streams)
        stack.callback(loader.close)
        run = Run(
            config,
            out,
            dataset,
            loader,
            state,
            journal,
            interrupts,
            on_snapshot,
            teacher,
            uploads,
            writer,
        )
        journal.say(opening(run))
        return take_steps(run, stack.enter_context(open_inputs(run)))


def _prepare(
    config: RunConfig, out: Path, device: str | torch.device, *, resume: bool
) -> tuple[Dataset, RunConfig, torch.device, Teacher | None]:
    """What a run needs and can be refused for, before anything is made."""
    if is_first():
        (refuse_no_run if resume else refuse_taken)(out)
    refuse_missing(config.train.wandb)
    if config.train.parallel.in_pieces:
        refuse_old_torch()
    if config.train.upload and is_first():
        open_target(config.train.upload)
    if config.train.init_from and not resume:
        recommended(config.train.init_from)
    dataset = open_training_data(config)
    config = complete(config, dataset)
    device = own_device(torch.device(device))
    refuse_parallel(config.train, device)
    teacher = open_teacher(config, device)
    return dataset, _of_one_moment(config, teacher) if teacher else config, device, teacher


def _of_one_moment(config: RunConfig, teacher: Teacher) -> RunConfig:
    """The configuration with the very checkpoint of its teacher, whose run may go on."""
    resolved = {"teacher": teacher.model.provenance["checkpoint"]}
    return config.model_copy(update={"train": config.train.model_copy(update=resolved)})


@dataclass
class Run:
    """What the steps of a run share."""

    config: RunConfig
    folder: Path
    dataset: Dataset
    loader: Loader | StreamLoader
    state: State
    journal: Journal
    interrupts: Interrupts
    on_snapshot: OnSnapshot | None
    teacher: Teacher | None
    uploads: Uploads | None = None
    writer: ShardWriter | None = None
    drawing: bool = True


@contextmanager
def open_inputs(run: Run) -> Iterator[Iterator[Inputs]]:
    """What the steps of a run see, from the image on at which it stands."""
    state, config = run.state, run.config
    inputs = (
        draw_inputs(
            batch,
            state.model,
            seed=config.train.seed,
            label_dropout=config.train.label_dropout,
            augmentation=config.data.augment,
        )
        for batch in run.loader
    )
    if state.model.device.type == "cpu":
        yield inputs
        return
    with closing(Ahead(inputs)) as ahead:
        yield ahead


def opening(run: Run) -> str:
    """What is trained: the first line of metrics may take a while."""
    network = run.state.model.network
    return (
        f"{run.config.model.network.name} of {count_parameters(network):,} parameters, "
        f"{described(run.config, run.dataset)}, {run.state.model.device}; "
        f"a line every {run.config.train.log_every:,} images"
    )


def take_steps(run: Run, inputs: Iterator[Inputs]) -> Outcome:
    """Step until the run is over, with lines, checkpoints and pictures where they are due."""
    state, train = run.state, run.config.train
    objective = build_objective(state, run.config, run.teacher)
    gauges = Gauges(run.config, state)
    power_every = train.ema.power_every or train.checkpoint_every
    reason = why_stop(run, gather(word(run)))
    last = time.monotonic()
    while reason is None:
        before = state.images
        batch = next_inputs(run, gauges, inputs)
        rate, words = take_step(run, objective, batch)
        now = time.monotonic()
        state.seconds, last = state.seconds + now - last, now
        reason = why_stop(run, words if world() > 1 else [word(run)])
        over = reason in ("done", "time")
        if over or _passed(train.log_every, before, state.images):
            figures = {**state.meter.read(), "lr": rate, **gauges.read(objective, batch)}
            run.journal.write(state.images, state.seconds, figures)
            for note in passed_over(run.loader):
                run.journal.say(note)
        if train.ema.power and _passed(power_every, before, state.images):
            save_averages(state, run.folder, run.config)
        if reason or _passed(train.checkpoint_every, before, state.images):
            keep(run, whole=over)
        if over or (not reason and _passed(train.snapshot_every, before, state.images)):
            picture(run)
            last = time.monotonic()  # pictures are no training
    finish_writing(run)
    barrier()  # the first process may still be drawing, and ends all if it is left alone
    return Outcome(reason, state.images, state.seconds)


def next_inputs(run: Run, gauges: Gauges, inputs: Iterator[Inputs]) -> Inputs:
    """What the next step sees; where data cannot be read, the steps so far are kept first."""
    try:
        return gauges.next(inputs)
    except DataError:
        if world() == 1 and run.state.images:  # several would wait for each other
            keep(run, whole=True)
        raise


def take_step(run: Run, objective: Objective, inputs: Inputs) -> tuple[float, Sequence[int]]:
    """Learn from one batch, or skip it if its loss or gradient is not finite.

    Returns:
        The learning rate, and what each process had to say when the gradients were exchanged.
    """
    state, train = run.state, run.config.train
    if state.images in state.passed:
        return pass_over(run)
    gradients = objective.gradients(
        inputs, micro_batch=train.micro_batch, batch=train.batch, word=word(run)
    )
    spike = judge(state, run.config, gradients)
    if spike:
        run.journal.say(record(run.folder, run.config, state, inputs, gradients, words=spike))
        if gradients.finite and train.on_spike == "rewind":
            finish_writing(run)
            raise Rewind(state.images, spike)
    state.images += train.batch
    rate = rate_of(run)
    if gradients.finite and spike and train.on_spike == "skip":
        state.meter.skip()
    elif gradients.finite:
        objective.clip(gradients.norm, train.clip)
        set_rate(state.optimizer, rate)
        state.optimizer.step()
        state.averages.update(batch=train.batch, after=state.images)
        state.meter.add(
            gradients.losses.tolist(), gradients.positions.tolist(), gradient_norm=gradients.norm
        )
        state.bad = 0
    else:
        state.meter.skip()
        note = note_trouble(
            state,
            objective,
            inputs,
            gradients,
            index=index_of(run.config, run.dataset),
            file=run.folder / "nonfinite.jsonl",
            patience=train.max_bad_steps,
        )
        if note:
            run.journal.say(note)
    if state.scale:
        state.scale.update(finite=gradients.finite)
    return rate, gradients.words


def pass_over(run: Run) -> tuple[float, Sequence[int]]:
    """Count a batch that broke out before, without learning from it."""
    run.state.images += run.config.train.batch
    run.state.meter.skip()
    return rate_of(run), gather(word(run))


def rate_of(run: Run) -> float:
    """The learning rate of the step that ends where the run stands."""
    train = run.config.train
    return learning_rate(
        run.state.images,
        peak=train.lr,
        warmup=train.warmup,
        law=train.decay,
        start=train.decay_from,
        end=train.images,
        floor=train.lr_end,
    )


def word(run: Run) -> int:
    """What this process would tell the others: the signal it was sent, or that time is up."""
    minutes = run.config.train.minutes
    # The clocks of the processes differ: that of the first counts.
    if is_first() and minutes is not None and run.state.seconds >= 60 * minutes:
        return OUT_OF_TIME
    return run.interrupts.received


def why_stop(run: Run, words: Sequence[int]) -> Reason | None:
    """Why the run is over, None if it is not: the same in all processes.

    Args:
        run: where it stands.
        words: of all processes.
    """
    if run.state.images >= run.config.train.images:
        return "done"
    if OUT_OF_TIME in words:
        return "time"
    if signal.SIGINT in words:
        return "interrupted"
    return "terminated" if signal.SIGTERM in words else None


def keep(run: Run, *, whole: bool) -> None:
    """Write a checkpoint, or begin it, after the metrics that lead up to it."""
    run.journal.flush()
    run.state.streams = positions(run.loader, run.state.images)
    finish_writing(run)
    if run.writer is not None and not whole:
        begin_pieces(run.state, run.folder, run.config, run.writer)
        return
    save_state(run.state, run.folder, run.config)
    send(run, checkpoint_folder(run.folder, run.state.images))


def finish_writing(run: Run) -> None:
    """Wait for the checkpoint that is being written in the background, if one is."""
    written = run.writer.wait() if run.writer is not None else None
    if written is not None:
        send(run, written)


def send(run: Run, checkpoint: Path) -> None:
    """Begin to copy a checkpoint elsewhere, if that is wanted."""
    if run.uploads is not None:
        run.uploads.send(checkpoint)


def picture(run: Run) -> None:
    """Let the caller draw, from a model of its own with the recommended weights."""
    if run.on_snapshot is None:
        return
    state = run.state
    weights = Whole(state.tensors[run.config.train.ema.chosen])
    if not (is_first() and run.drawing):
        weights.pass_through()
        return
    model = build_model(run.config.model)
    model.network.load_state_dict(dict(weights))
    model.network.requires_grad_(False)
    model.sampling = run.config.sampling
    model.to(state.model.device)
    folder = run.folder / "snapshots" / f"{state.images:012d}"
    try:
        run.on_snapshot(Snapshot(run.folder, folder, state.images, model, run.dataset, run.config))
    except CheckpointError as error:  # the autoencoder of latents is not at hand
        run.journal.say(f"no pictures in this run: {error}")
        run.drawing = False
    except (ValueError, DiffitError) as error:
        # A young network may draw what is not finite: no reason to end.
        run.journal.say(f"no pictures at {state.images} images: {error}")


def open_journal(config: RunConfig, out: Path, state: State, *, quiet: bool) -> Journal:
    """The journal of a run that stands at ``state``."""
    train = config.train
    if not is_first():
        silent = ConsoleLine(total=train.images, quiet=True)
        return Journal(None, start=state.images, seconds=state.seconds, console=silent)
    return Journal(
        out / METRICS,
        start=state.images,
        seconds=state.seconds,
        console=ConsoleLine(total=train.images, minutes=train.minutes, quiet=quiet),
        writers=open_writers(
            out, start=state.images, tensorboard=train.tensorboard, wandb=train.wandb
        ),
    )


def _passed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, after]; never for 0."""
    return bool(every) and before // every < after // every
