"""Training of the library's own vision transformer as a classifier, for `diffit.explain`.

A run is a folder:

    OUT/training.yaml     what is done
    OUT/metrics.jsonl     a line of loss and held-out accuracy now and then; curve.png draws them
    OUT/checkpoints/      the newest states, from which a killed run goes on bit for bit
    OUT/classifier/       the result: `diffit.explain.opening.open_classifier` opens it, or OUT
    OUT/report.json       accuracy on the images learnt from and on those held out
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit import draws, sealed
from diffit.checkpoint import checkpoint_folder, newest, prune
from diffit.config import parse, read_yaml, to_yaml
from diffit.data import Dataset
from diffit.data.loader import Batch, Loader
from diffit.diffusion.denoiser import Denoise
from diffit.errors import UsageError
from diffit.explain.classifier_folder import ClassifierCard, save_classifier
from diffit.explain.opening import RESULT, SETTINGS
from diffit.explain.vit import ViT, ViTConfig, build_vit
from diffit.networks.count import count_parameters
from diffit.training.classifier_inputs import accuracy, draw_images, open_denoiser, open_sets
from diffit.training.classifier_settings import ClassifierRun
from diffit.training.console import ConsoleLine
from diffit.training.ema import AverageConfig, Averages
from diffit.training.folder import full_disk_in_one_line, locked, write_whole
from diffit.training.interrupts import Interrupts
from diffit.training.journal import Journal, read_metrics
from diffit.training.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_rate,
)
from diffit.training.step import arithmetic
from diffit.training.trouble import DivergedError

METRICS, REPORT = "metrics.jsonl", "report.json"
MOST = 1000
"""Held-out images that a line of metrics is measured on; the report uses all of them."""
KEEP = 2
"""Checkpoints that stay."""


@dataclass(frozen=True)
class Trained:
    """How a call of `train_classifier` ended.

    Attributes:
        reason: all images seen, or interrupted.
        images: seen by the run.
        seconds: in training, over all parts of the run.
        train_accuracy: on the images learnt from, as they are; None if interrupted.
        accuracy: on those held out; None if interrupted.
        folder: of the classifier; None if interrupted.
    """

    reason: Literal["done", "interrupted"]
    images: int
    seconds: float
    train_accuracy: float | None = None
    accuracy: float | None = None
    folder: Path | None = None


def train_classifier(
    run: ClassifierRun,
    out: Path,
    *,
    device: str | torch.device = "cpu",
    quiet: bool = False,
) -> Trained:
    """Train a classifier in a folder, or go on where an earlier call was ended.

    Args:
        run: on what, which network, how.
        out: a free name, or the folder of the same run.
        device: where to compute.
        quiet: show nothing on the console.

    Raises:
        UsageError: ``out`` holds something else, or a run with other settings.
        DataError, ConfigError: the images cannot be classified, or do not fit the settings.
        DivergedError: the loss is not finite.
    """
    _refuse_other(out, run)
    device = torch.device(device)
    learnt, held_out = open_sets(run)
    vit = build_vit(_vit_config(run, learnt), seed=run.train.seed).to(device)
    denoise = open_denoiser(run.train.denoiser, vit.shape, device)
    numbers = arithmetic(device, tf32=False, threads=run.train.threads)
    again = "the same command"
    with locked(out), full_disk_in_one_line(out, again), numbers, Interrupts() as interrupts:
        sealed.clear_leftovers(out / "checkpoints")
        write_whole(out / SETTINGS, to_yaml(run))
        state, notes = _begin(run, vit, out)
        with _journal(run, state, out, quiet=quiet) as journal:
            for note in notes:
                journal.say(note)
            journal.say(
                f"a ViT of {count_parameters(vit):,} parameters, {run.data.path} of "
                f"{len(learnt):,} images, {len(held_out):,} held out, {device}"
            )
            _take_steps(run, state, out, (learnt, held_out), denoise, journal, interrupts)
        if state.images < run.train.images:
            return Trained("interrupted", state.images, state.seconds)
        return _finish(run, state, out, learnt, held_out)


@dataclass
class _State:
    """Where a run stands."""

    vit: ViT
    optimizer: torch.optim.Optimizer
    averages: Averages
    images: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0


def _refuse_other(out: Path, run: ClassifierRun) -> None:
    """UsageError unless ``out`` is free, or holds this very run."""
    if (out / SETTINGS).is_file():
        if parse(ClassifierRun, read_yaml(out / SETTINGS), source=str(out / SETTINGS)) != run:
            raise UsageError(
                f"--out {out} holds a run with other settings; repeat it with those of "
                f"{out / SETTINGS}, or name a new folder"
            )
    elif out.exists() and (not out.is_dir() or {file.name for file in out.iterdir()} - {"lock"}):
        raise UsageError(
            f"--out {out} exists and is no training of a classifier; name a new folder"
        )


def _vit_config(run: ClassifierRun, dataset: Dataset) -> ViTConfig:
    channels, size, _ = dataset.shape
    settings = {
        **run.network.model_dump(),
        "size": size,
        "channels": channels,
        "class_names": dataset.classes,
    }
    return parse(ViTConfig, settings, source="network")


def _begin(run: ClassifierRun, vit: ViT, out: Path) -> tuple[_State, list[str]]:
    """The state of the newest intact checkpoint, or a fresh one, and what the user should know."""
    train = run.train
    optimizer = build_optimizer(
        vit, name="adamw", rate=train.lr, betas=(0.9, 0.99), epsilon=1e-8,
        weight_decay=train.weight_decay,
    )  # fmt: skip
    state = _State(vit, optimizer, Averages(vit, AverageConfig(constant=(train.ema,))))
    folder, damaged = newest(out)
    notes = [f"{reason}; passed over" for reason in damaged.values()]
    if folder is None:
        return state, notes
    content = sealed.read_state(folder)
    vit.load_state_dict(sealed.read_tensors(folder, "model"))
    load_optimizer_tensors(optimizer, vit, sealed.read_tensors(folder, "optimizer"))
    state.averages.load(_average(train.ema), sealed.read_tensors(folder, "ema"))
    state.images, state.seconds = content["images"], content["seconds"]
    state.loss_sum, state.loss_count = content["loss"]
    return state, [*notes, f"goes on at {state.images:,} images"]


def _average(decay: float) -> str:
    return AverageConfig(constant=(decay,)).names[0]


def _journal(run: ClassifierRun, state: _State, out: Path, *, quiet: bool) -> Journal:
    console = ConsoleLine(total=run.train.images, quiet=quiet)
    return Journal(out / METRICS, start=state.images, seconds=state.seconds, console=console)


def _take_steps(
    run: ClassifierRun,
    state: _State,
    out: Path,
    sets: tuple[Dataset, Dataset],
    denoise: Denoise | None,
    journal: Journal,
    interrupts: Interrupts,
) -> None:
    """Step until all images are seen or a signal comes; lines and checkpoints where due."""
    train, learnt = run.train, sets[0]
    with Loader(
        learnt, batch=train.batch, seed=train.seed, start=state.images, flip=run.data.flip,
        workers=run.data.workers, memory=run.data.memory << 20,
    ) as loader:  # fmt: skip
        while state.images < train.images and not interrupts.received:
            before, started = state.images, time.monotonic()
            _step(run, state, next(loader), denoise)
            state.seconds += time.monotonic() - started
            over = state.images >= train.images
            if over or _passed(train.log_every, before, state.images):
                _note(run, state, sets[1], journal)
            if over or interrupts.received or _passed(train.checkpoint_every, before, state.images):
                journal.flush()
                _save(run, state, out)


def _step(run: ClassifierRun, state: _State, batch: Batch, denoise: Denoise | None) -> None:
    """Learn from one batch."""
    train, vit, numbers = run.train, state.vit, batch.number.tolist()
    device = next(vit.parameters()).device
    images = draw_images(batch, train, denoise=denoise, device=device)
    keys = None
    if run.network.dropout:
        keys = draws.integers(train.seed, numbers, "classifier/dropout", 1 << 62).to(device)
    loss = _loss(vit(images, keys), batch.label, train.label_smoothing)
    vit.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    value = float(loss.detach())
    state.images += len(numbers)
    if not math.isfinite(value):
        raise DivergedError(
            f"the loss is not finite at {state.images} images; start again in a new folder with a "
            "lower train.lr"
        )
    if train.clip is not None:
        torch.nn.utils.clip_grad_norm_(vit.parameters(), train.clip)
    set_rate(
        state.optimizer,
        learning_rate(
            state.images, peak=train.lr, warmup=train.warmup, law="cosine", end=train.images
        ),
    )
    state.optimizer.step()
    state.averages.update(batch=len(numbers), after=state.images)
    state.loss_sum += value * len(numbers)
    state.loss_count += len(numbers)


def _loss(logits: Tensor, label: Tensor | None, smoothing: float) -> Tensor:
    assert label is not None  # open_sets refuses sets without
    return F.cross_entropy(logits, label.to(logits.device), label_smoothing=smoothing)


def _averaged(run: ClassifierRun, state: _State) -> ViT:
    """The classifier with the averaged weights, which is the one that counts."""
    vit = ViT(state.vit.config)
    vit.load_state_dict(state.averages.tensors[_average(run.train.ema)])
    return vit.to(next(state.vit.parameters()).device).eval().requires_grad_(False)


def _note(run: ClassifierRun, state: _State, held_out: Dataset, journal: Journal) -> None:
    """A line of metrics."""
    vit = _averaged(run, state)
    loss = state.loss_sum / state.loss_count
    state.loss_sum, state.loss_count = 0.0, 0
    found = accuracy(vit, held_out, most=MOST)
    journal.write(state.images, state.seconds, {"loss": loss, "accuracy": found})


def _save(run: ClassifierRun, state: _State, out: Path) -> None:
    """Write a checkpoint, and only then remove those that it makes superfluous."""
    sealed.write_sealed(
        checkpoint_folder(out, state.images),
        config=to_yaml(run),
        tensors={
            "model": state.vit.state_dict(),
            "optimizer": optimizer_tensors(state.optimizer, state.vit),
            "ema": state.averages.tensors[_average(run.train.ema)],
        },
        state={
            "images": state.images,
            "seconds": state.seconds,
            "loss": [state.loss_sum, state.loss_count],
        },
    )
    prune(out, keep_last=KEEP)


def _finish(
    run: ClassifierRun, state: _State, out: Path, learnt: Dataset, held_out: Dataset
) -> Trained:
    """Measure, and write the classifier, the report and the picture."""
    vit = _averaged(run, state)
    on_learnt, on_held_out = accuracy(vit, learnt), accuracy(vit, held_out)
    card = ClassifierCard(
        vit=vit.config,
        data=run.data.path,
        accuracy=on_held_out,
        held_out=len(held_out),
        recipe=run.model_dump(mode="json"),
    )
    save_classifier(out / RESULT, vit, card, state={"images": state.images})
    report = {
        "images": state.images,
        "seconds": round(state.seconds, 3),
        "train": {"accuracy": on_learnt, "images": len(learnt)},
        "held_out": {"accuracy": on_held_out, "images": len(held_out)},
    }
    write_whole(out / REPORT, json.dumps(report, indent=1) + "\n")
    draw_curve(out)
    return Trained("done", state.images, state.seconds, on_learnt, on_held_out, out / RESULT)


def draw_curve(run: Path) -> None:
    """Loss and held-out accuracy over the images of a run, as `curve.png`."""
    from matplotlib.figure import Figure

    lines = read_metrics(run / METRICS)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    loss, right = figure.subplots(1, 2)
    images = [line["images"] for line in lines]
    loss.plot(images, [line["loss"] for line in lines])
    loss.set(xlabel="images", ylabel="loss")
    right.plot(images, [line["accuracy"] for line in lines])
    right.set(xlabel="images", ylabel="accuracy on held-out images", ylim=(0, 1))
    for panel in (loss, right):
        panel.spines[["top", "right"]].set_visible(False)
    part = run / ".curve.part.png"
    figure.savefig(part, dpi=120)
    part.replace(run / "curve.png")


def _passed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, after]."""
    return before // every < after // every
