"""`diffit bench restore`: every task with every method on the same images, in one table."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diffit import __version__, draws
from diffit.checkpoint import load
from diffit.codecs import Pixels
from diffit.commands.bench_restore_report import (
    BASELINE,
    Row,
    sheet_path,
    summary_line,
    write_reports,
)
from diffit.commands.explain.progress import Bar
from diffit.commands.explain.store import Store
from diffit.commands.restore_folder import begin
from diffit.commands.restore_problem import to_pm1, to_uint8
from diffit.commands.restore_work import figures
from diffit.config import Settings
from diffit.data import open_dataset
from diffit.data.images import grid, write_png
from diffit.distributed import pick_device
from diffit.drawing import threads
from diffit.errors import UsageError
from diffit.model import Model
from diffit.restoration import METHODS, check_fits
from diffit.restoration.operators import Operator
from diffit.restoration.task import Task
from diffit.restoration.tasks import find_task
from diffit.restoring import baseline, find_method, is_latent, restore
from diffit.samples import image_shape, settle_codec, weights_of
from diffit.training.folder import locked

TASKS = "denoise-25,sr2,sr4,inpaint-box,inpaint-random,deblur-gauss,cs4,jpeg-10"


class Restore(Settings):
    """Restore the same images by every method for every task, and compare with the truth.

    Beside the methods stands what needs no model: bicubic enlargement for super-resolution, else
    the pseudo-inverse A+ y. Interrupted? The same command continues.
    """

    model: Path
    """A checkpoint, a run, whose newest checkpoint is taken, or a hub id."""
    out: Path = Path("bench-restore")
    """Folder for the table, the pictures and the report."""
    data: str = "builtin:patches-test"
    """Clean images that the model has not seen: a folder, a zip, or a set of the package."""
    count: int = Field(default=16, ge=1, le=100_000)
    """How many of them, evenly spread over the set."""
    tasks: str = TASKS
    """Which tasks, by name."""
    methods: str = "all"
    """Which methods, by name; those that do not fit a task are left out of it, and said to be."""
    steps: int | None = Field(default=None, ge=1, le=100_000)
    """Noise levels of all; by default as many as each method was published with."""
    batch: int = Field(default=16, ge=1, le=4096)
    """Images restored at once; they share their mask or kernel. The figures depend on it."""
    seed: int = 0
    """Follows into masks, kernels, noise and every draw."""
    weights: str = ""
    """Set of weights, such as model or ema-0.9999; by default the recommended one."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: int = Field(default=1, ge=0, le=1024)
    """CPU threads; 0 leaves PyTorch its choice."""


class Cell(NamedTuple):
    """One method on one task, or the baseline."""

    task: Task
    method: str


def run_restore(args: Restore) -> None:
    """Plan, restore batch by batch, report; what is there already is not done again."""
    tasks = [find_task(name) for name in _names(args.tasks)]
    methods = list(METHODS) if args.methods == "all" else _names(args.methods)
    for name in methods:
        find_method(name)
    model = load(args.model, weights=args.weights or None, device=pick_device(args.device))
    settle_codec(model)
    images = read_images(args, model)
    cells, left_out = fitting(tasks, methods, model, tuple(images.shape[1:]))
    if not any(cell.method != BASELINE for cell in cells):
        raise UsageError(f"none of these methods fits: {left_out[0]}")
    for sentence in left_out:
        print(f"diffit: note: left out: {sentence}", file=sys.stderr)
    begin(args.out, _plan(args, model))
    with locked(args.out), threads(args.threads or torch.get_num_threads()):
        rows = measure(args, model, images, cells)
        written = write_reports(args.out, rows, _about(args, model), left_out)
    print("\n".join(summary_line(row) for row in rows))
    print(f"table, pictures and report: {', '.join(map(str, written))}")


def read_images(args: Restore, model: Model) -> Tensor:
    """(count, C, H, W) float64 images in [-1, 1]."""
    channels, height, width = image_shape(model)
    dataset = open_dataset(args.data, channels=1 if channels == 1 else 3, labels=False)
    if dataset.shape[1] < height or dataset.shape[2] < width:
        raise UsageError(
            f"{args.data} has images of {dataset.shape[1]} x {dataset.shape[2]} pixels, the model "
            f"draws {height} x {width}; name larger ones"
        )
    if args.count > len(dataset):
        raise UsageError(f"--count is {args.count}, but {args.data} has {len(dataset)} images")
    places = [i * len(dataset) // args.count for i in range(args.count)]
    return torch.stack([to_pm1(np.asarray(dataset[i].image)) for i in places])


def fitting(
    tasks: list[Task], methods: list[str], model: Model, shape: tuple[int, ...]
) -> tuple[list[Cell], list[str]]:
    """What can be measured, the baseline of each task first; and why the rest cannot."""
    cells, left_out = [], []
    for task in tasks:
        operator = task.operator(shape, 0)
        if operator is None:
            left_out.append(f"{task.name} has no operator: only a model trained for it undoes it")
            continue
        cells.append(Cell(task, BASELINE))
        for method in methods:
            try:
                check_fits(method, operator, latent=is_latent(model), sigma_y=task.noise)
                cells.append(Cell(task, method))
            except UsageError as error:
                left_out.append(f"{task.name} by {method}: {error}")
    return cells, left_out


def measure(args: Restore, model: Model, images: Tensor, cells: list[Cell]) -> list[Row]:
    """The figures of every cell, from the folder or made now."""
    store, starts = Store(args.out), range(0, args.count, args.batch)
    write_truth(args, images)
    rows = []
    try:
        with Bar("restoring", len(cells) * len(starts)) as bar:
            for cell in cells:
                parts = []
                for first in starts:
                    name = f"{cell.task.name}--{cell.method}--{first:06}"
                    parts.append(store(name, _unit(args, model, images, cell, first)))
                    bar.tell(1)
                rows.append(Row.of(cell.task.name, cell.method, parts))
    except KeyboardInterrupt:
        print("diffit: nothing is lost; repeat the command to continue", file=sys.stderr)
        raise
    return rows


def write_truth(args: Restore, images: Tensor) -> None:
    """The clean images as the report shows them."""
    for first in range(0, args.count, args.batch):
        path = sheet_path(args.out, "", "truth", first)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, sheet(images[first : first + args.batch]))


def sheet(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] as one uint8 picture, in a row."""
    return grid(to_uint8(images), columns=len(images), gap=0)


def _unit(
    args: Restore, model: Model, images: Tensor, cell: Cell, first: int
) -> Callable[[], dict[str, Any]]:
    """One batch of one cell: its figures; the images are written beside."""

    def make() -> dict[str, Any]:
        clean = images[first : first + args.batch]
        operator = cell.task.operator(tuple(clean.shape[1:]), args.seed + first)
        assert operator is not None
        places = range(first, first + len(clean))
        streams = [draws.generator(args.seed, i, "measurement") for i in places]
        y = cell.task.measure(operator, clean, streams)
        x, facts = _answer(args, model, cell, operator, y, first)
        for method, shown in ((cell.method, x), ("measured", cell.task.picture(operator, y))):
            path = sheet_path(args.out, cell.task.name, method, first)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, sheet(shown))
        each = [figures(a[None], b[None]) for a, b in zip(x, clean, strict=True)]
        return {**facts, "metrics": each}

    return make


def _answer(
    args: Restore, model: Model, cell: Cell, operator: Operator, y: Tensor, first: int
) -> tuple[Tensor, dict[str, Any]]:
    """Restored images, (B, C, H, W) in [-1, 1], with cost and consistency."""
    device = model.device
    started = _now(device)
    if cell.method == BASELINE:
        x, nfe = baseline(cell.task, operator, y), 0
    else:
        result = restore(
            model,
            y,
            operator,
            [args.seed + first + i for i in range(len(y))],
            method=cell.method,
            steps=args.steps,
            sigma_y=cell.task.noise,
        )
        x, nfe = Pixels().decode(result.x).cpu().double() / 127.5 - 1, result.nfe
    seconds = (_now(device) - started) / len(y)
    gap = (operator(x) - y).flatten(1).square().mean(1).sqrt()
    return x, {"nfe": nfe, "seconds": seconds, "consistency": gap.tolist()}


def _now(device: torch.device) -> float:
    """Seconds of the clock on an accelerator, of processor time on a CPU that others use too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError("an empty list of names; write some, such as sr2,inpaint-box")
    return names


def _plan(args: Restore, model: Model) -> dict[str, Any]:
    asked = args.model_dump(mode="json", exclude={"out", "tasks", "methods", "model", "device"})
    return {
        **asked,
        "model": weights_of(model).model_dump(mode="json"),
        "device": model.device.type,
        "versions": {"diffit": __version__, "torch": torch.__version__},
    }


def _about(args: Restore, model: Model) -> str:
    clock = "processor time" if model.device.type == "cpu" else "time on the clock"
    return (
        f"{args.count} images of {args.data}, restored by {args.model}; means over images, seconds "
        f"an image of {clock} on {model.device.type}. PSNR in dB of RGB values clipped to their "
        "range, no border cut; consistency is the root mean square of A x - y in [-1, 1]."
    )
