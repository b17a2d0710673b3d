"""`diffit restore IMAGE --model RUN --task sr4`: images restored by a model and a method."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from pydantic import Field

from diffit import __version__
from diffit.checkpoint import load
from diffit.commands.explain.progress import Bar
from diffit.commands.restore_folder import begin, claimed, finish, read_record, write_result
from diffit.commands.restore_problem import (
    Setup,
    choose_task,
    find_inputs,
    names_of,
    open_problem,
    trained_task,
)
from diffit.commands.restore_work import SAMPLES, Work
from diffit.config import Settings
from diffit.distributed import pick_device
from diffit.drawing import threads
from diffit.errors import UsageError
from diffit.model import Model
from diffit.restoration.supervised import is_supervised
from diffit.restoration.task import Task
from diffit.restoring import find_method, read_options
from diffit.samples import image_shape, settle_codec, weights_of
from diffit.training.console import duration

SHOWN = 20
"""Images whose figures are printed."""


class Args(Settings):
    """Restore an image, or a folder of images, with a trained model.

    IMAGE is what was measured: the small image for super-resolution, the one with holes and its
    --mask for inpainting, the blurred one and its --kernel for deblurring, a .npy array for what is
    no picture. With --degrade it is a clean image, which is degraded first and compared with what
    comes out. Repeat an interrupted command to continue it.
    """

    image: tyro.conf.Positional[Path]
    """An image, a .npy array, or a folder of them."""
    model: Path
    """A checkpoint, a run, whose newest checkpoint is taken, or a hub id."""
    task: str = ""
    """What was done to the image: denoise-25, sr4, inpaint-box, deblur-gauss, colorize, ..."""
    method: str = "ddnm"
    """How to undo it: ddrm, ddnm, dps, diffpir, ...; a model that was trained for its task undoes
    it as it was trained."""
    out: Path = Path("restored")
    """Folder for the results; processes that share it share the work."""
    degrade: bool = False
    """The image is clean: degrade it, restore it, and compare."""
    mask: Path | None = None
    """Picture of what is known (white) and what is to be filled in (black)."""
    kernel: Path | None = None
    """The blur kernel: a .npy array or a picture, with odd sides."""
    sigma_noise: float | None = Field(default=None, ge=0, le=10)
    """Standard deviation of the noise of the measurement, for pixels from 0 to 1; by default that
    of the task, which for most is none."""
    steps: int | None = Field(default=None, ge=1, le=100_000)
    """Noise levels; by default as many as the method was published with."""
    options: str = ""
    """Options of the method, such as eta=0.5,travel=3."""
    samples: int = Field(default=1, ge=1, le=SAMPLES)
    """Answers to draw for each image; from two on their mean and spread are written too."""
    seed: int = 0
    """Sample k of image i is drawn from seed + 1000 i + k."""
    label: int | None = None
    """Class of the images, for a model with classes."""
    guidance: float = 1.0
    """Weight of the class; 1 is no guidance."""
    overlap: int | None = Field(default=None, ge=0)
    """Pixels that tiles of an image larger than the model share; by default a quarter of a tile."""
    batch: int = Field(default=64, ge=1, le=100_000)
    """Tiles, or samples of an image without tiles, that are computed at once; bounds the memory."""
    video: bool = False
    """Also write how the first sample came about, as an animated WebP."""
    weights: str = ""
    """Set of weights, such as model or ema-0.9999; by default the recommended one."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0 leaves PyTorch its choice. The last bit of images depends on it."""


def run(args: Args) -> None:
    """Refuse what cannot work, restore what is missing, write it down."""
    started = time.monotonic()
    paths = find_inputs(args.image)
    names = names_of(paths)
    find_method(args.method)
    options = read_options(args.method, args.options)
    model = load(args.model, weights=args.weights or None, device=pick_device(args.device))
    learned = is_supervised(model.config)
    task = task_of(args, model.config.task)
    settle_codec(model)
    count = args.threads or torch.get_num_threads()
    setup = Setup(task, args.degrade, args.seed, image_shape(model), learned)
    work = make_work(args, model, setup, options)
    for place, path in enumerate(paths):  # all of them, before the first is worked on
        work.check(open_problem(setup, path, place))
    begin(args.out, make_plan(args, model, names, count))
    todo = [name for name in names if read_record(args.out, name) is None]
    method = "as trained" if learned else f"by {args.method}"
    print(describe(args, f"{task.about}, {method}", len(names), len(names) - len(todo)))
    try:
        with threads(count), Bar("restoring", len(todo)) as bar:
            for done, name in enumerate(claimed(args.out, todo)):
                place = names.index(name)
                problem = open_problem(setup, paths[place], place)
                files, record = work.restore(name, problem, place, Reach(bar, done))
                write_result(args.out, name, files, record)
    except KeyboardInterrupt:
        print("diffit: nothing is lost; repeat the command to continue", file=sys.stderr)
        raise
    records = finish(args.out, names)
    for record in records[:SHOWN]:
        print(sentence(record))
    if len(records) > SHOWN:
        print(f"... and {len(records) - SHOWN} more")
    spent = duration(time.monotonic() - started)
    print(
        f"restored images in {args.out / 'restored'}, before and after in {args.out / 'compare'}, "
        f"figures in {args.out / 'restore.json'} ({spent})"
    )


def task_of(args: Args, trained: str) -> Task:
    """What is to be undone: what a model was ``trained`` for, or what the arguments say."""
    if not trained:
        return choose_task(args.task, mask=args.mask, kernel=args.kernel, noise=args.sigma_noise)
    if args.mask or args.kernel or args.sigma_noise is not None:
        raise UsageError(
            f"this model was trained to restore {trained} and is shown the degraded image alone; "
            "leave --mask, --kernel and --sigma-noise out"
        )
    return trained_task(trained, args.task, degrade=args.degrade)


class Reach:
    """Tells a bar how far the image after ``done`` others is."""

    def __init__(self, bar: Bar, done: int) -> None:
        self.bar, self.done = bar, done

    def __call__(self, part: float) -> None:
        self.bar.reach(self.done + part)


def make_work(args: Args, model: Model, setup: Setup, options: dict[str, Any]) -> Work:
    """How each image is restored."""
    return Work(
        model=model,
        setup=setup,
        method=args.method,
        options=options,
        steps=args.steps,
        samples=args.samples,
        seed=args.seed,
        label=args.label,
        guidance=args.guidance,
        overlap=args.overlap,
        batch=args.batch,
        video=args.video,
    )


def make_plan(args: Args, model: Model, names: list[str], count: int) -> dict[str, Any]:
    """What the results depend on."""
    asked = args.model_dump(mode="json", exclude={"out", "device", "threads", "model", "image"})
    return {
        **asked,
        "model": weights_of(model).model_dump(mode="json"),
        "images": names,
        "device": model.device.type,
        "threads": count,
        "versions": {"diffit": __version__, "torch": torch.__version__},
        "command": shlex.join(["diffit", *sys.argv[1:]]),
    }


def describe(args: Args, about: str, count: int, there: int) -> str:
    """One line on what is about to happen."""
    images = "1 image" if count == 1 else f"{count} images"
    again = f", {there} of them are there already" if there else ""
    many = f", {args.samples} samples each" if args.samples > 1 else ""
    return f"{args.model}: {images}, {about}{many}{again}"


def sentence(record: dict[str, Any]) -> str:
    """The figures of one image in a line."""
    parts = [f"{record['nfe']} evaluations", f"{record['seconds']:.1f} s"]
    if record["consistency"] is not None:
        parts.append(f"|Ax - y| {record['consistency']:.2g}")
    for name, value in record.get("metrics", {}).items():
        parts.append(f"{name} {value:.2f} (before {record['baseline'][name]:.2f})")
    if "seam" in record:
        parts.append(f"seam {record['seam']:.3f}")
    return f"{record['name']}: {', '.join(parts)}"
