"""`diffit quantize CHECKPOINT --to KIND --out FOLDER`: fewer bits a weight, and what they cost."""

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from pydantic import Field

from diffit import __version__
from diffit.checkpoint import load
from diffit.commands.progress import follow
from diffit.config import Settings, parse, read_yaml
from diffit.data import DataConfig, Dataset
from diffit.deploy.calibrate import round_layers
from diffit.deploy.footprint import baseline, bits_a_weight, bytes_of, pace, peak_memory
from diffit.deploy.probe import Probe
from diffit.deploy.quantize import (
    Choice,
    QuantisedConfig,
    candidates,
    check_answers,
    check_quantisable,
    choose,
    config_of,
    exchanged,
    packed_as_trained,
)
from diffit.deploy.quantize_report import Cost, LayerRow, LevelRow, Report, draw, lines_of, machine
from diffit.deploy.sensitivity import layer_errors
from diffit.distributed import pick_device
from diffit.errors import UsageError
from diffit.generation import generate, refuse_restoring
from diffit.hub import Card, export, is_hub_folder, read_folder
from diffit.hub import find as find_source
from diffit.model import Model
from diffit.nn.linears import DenseConfig
from diffit.nn.packed import TernaryPackedConfig
from diffit.nn.quantized import Int4Config, Int8Config
from diffit.nn.ternary import TernaryConfig
from diffit.samples import weights_of
from diffit.sealed import CONFIG
from diffit.training.console import duration
from diffit.training.prepare import open_training_data
from diffit.training.settings import RunConfig

MEASURED = Fraction(1, 3)
"""Where in the data set the images of the measurement lie: off those of the calibration."""

KINDS: dict[str, Any] = {
    "int8": Int8Config,
    "int4": Int4Config,
    "ternary-packed": TernaryPackedConfig,
}

TARGETS = {"int8": 0.01, "int4": 0.05}
"""Errors that are allowed unless the user says another."""

OWN = {"activations": ("int8", "ternary-packed"), "group": ("int4", "ternary-packed"),
       "granularity": ("ternary-packed",), "storage": ("ternary-packed",)}  # fmt: skip
"""Options that only some kinds of layers have."""


class Args(Settings):
    """Give the linear layers of a trained model fewer bits, and measure what that changes.

    The result is a hub-style folder that all commands read, with the measurements in
    quantization.json and quantization.png. Layers that would cost too much stay as they are.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run, a checkpoint, a hub-style folder, published weights or a hub id."""
    to: Literal["int8", "int4", "ternary-packed"]
    """8 or 4 bits; or 2, for models that were trained with ternary layers."""
    out: Path
    """New folder for the result."""
    data: str = ""
    """Images to measure on: folder, zip, latents, or builtin:digits; by default those that the
    model was trained on."""
    weights: str = ""
    """Set of weights of a training checkpoint, such as ema; by default the best one."""
    error: float | None = Field(default=None, gt=0)
    """Largest relative error of the network's output; by default 0.01 for int8, 0.05 for int4."""
    layers: Literal["measured", "all"] = "measured"
    """measured leaves layers as they are until the error is small enough; all takes every one."""
    skip: tuple[str, ...] = ()
    """Layers that stay as they are in any case: names or patterns such as *.modulation."""
    activations: Literal["full", "int8"] = "full"
    """int8 also rounds what comes into a layer: much faster on a CPU, with an error of its own."""
    group: int | None = Field(default=None, ge=2, le=4096)
    """Weights that share a scale, for int4 (32) and for granularity group (128)."""
    granularity: Literal["tensor", "row", "group"] | None = None
    """Of ternary-packed from full-precision weights: what has a scale of its own (row)."""
    storage: Literal["2-bit", "base-3"] = "2-bit"
    """Of ternary-packed: base-3 takes a fifth less of the disk, and as much memory."""
    images: int = Field(default=8, ge=1, le=4096)
    """Images to measure on, and to evaluate at once."""
    calibrate: int = Field(default=32, ge=0, le=4096)
    """Other images, with a view to which weights are rounded; 0 takes the nearest numbers."""
    levels: int = Field(default=6, ge=1, le=100)
    """Noise levels to measure at, spread as in training."""
    draw: int = Field(default=0, ge=0, le=64)
    """Draw so many images with the same seeds before and after, for the picture."""
    measure: bool = True
    """Measure speed and memory; --no-measure saves the time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""


def run(args: Args) -> None:
    """Refuse what cannot work; quantise, measure, write; say what was made."""
    started = time.monotonic()
    config = linear_config(args)
    if args.out.exists():
        raise UsageError(f"--out {args.out} exists already; name a new folder")
    device = pick_device(args.device)
    args = args.model_copy(update={"checkpoint": str(find_source(args.checkpoint))})
    model = load(args.checkpoint, weights=args.weights or None, device=device)
    refuse_restoring(model)
    check_quantisable(model, config)
    if isinstance(model.config.linear, TernaryConfig):
        config = as_trained(args, model.config.linear, config)
    data = data_of(args, model)
    dataset = open_training_data(_run_of(model, data))
    probe = Probe.of(model, dataset, images=args.images, levels=args.levels, offset=MEASURED)
    choice = quantise(args, model, config, dataset, probe)
    config = config_of(config, choice)
    if args.to == "ternary-packed" and isinstance(model.config.linear, DenseConfig):
        _warn(choice)
    with _appearing(args.out) as folder:
        written = write_model(args, model, config, choice, data.path, folder)
        report = report_of(args, model, config, choice, data.path)
        report = report.model_copy(update={"costs": costs(args, model, written, probe, folder)})
        text = json.dumps(report.model_dump(mode="json"), indent=1)
        (folder / "quantization.json").write_text(text + "\n", encoding="utf-8")
        draw(
            report,
            folder / "quantization.png",
            _drawn(args.draw, {"fp32": model, args.to: written}),
        )
    _notes(args.out).unlink(missing_ok=True)
    print("\n".join(lines_of(report)))
    print(f"\n{args.out} ({duration(time.monotonic() - started)})")


def linear_config(args: Args) -> QuantisedConfig:
    """The kind of layers that is asked for; UsageError for options that it does not have."""
    for option, kinds in OWN.items():
        if getattr(args, option) != Args.model_fields[option].default and args.to not in kinds:
            raise UsageError(f"--{option} is for --to {' and '.join(kinds)}; leave it out")
    if args.group is not None and args.to == "ternary-packed" and args.granularity != "group":
        raise UsageError("--group of ternary-packed needs --granularity group")
    if args.layers == "all" and args.error is not None:
        raise UsageError("--layers all takes every layer, whatever --error; leave one of them out")
    given: dict[str, Any] = {name: getattr(args, name) for name in ("skip", *OWN)}
    if args.to == "ternary-packed" and args.granularity is None:
        given["granularity"] = "row"
    kind: Any = KINDS[args.to]
    known = {name: value for name, value in given.items() if name in kind.model_fields}
    found: QuantisedConfig = parse(
        kind, {name: value for name, value in known.items() if value is not None}, source="options"
    )
    return found


def as_trained(args: Args, trained: TernaryConfig, config: QuantisedConfig) -> QuantisedConfig:
    """The packed form of layers that were trained ternary: training has settled the rest."""
    for option in ("skip", "granularity", "group", "error"):
        if getattr(args, option) not in (None, ()):
            raise UsageError(
                f"--{option} is for full-precision weights; {args.checkpoint} was trained ternary, "
                "which settles it"
            )
    return packed_as_trained(trained, config)


def data_of(args: Args, model: Model) -> DataConfig:
    """The images to measure on: those that are named, or that the model was trained on."""
    if args.data:
        return DataConfig(path=args.data)
    folder = Path(model.provenance["checkpoint"])
    settings = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    data = settings.get("data") or {"path": model.provenance.get("data") or ""}
    if not data.get("path"):
        raise UsageError(
            f"{args.checkpoint} does not say on which images it was trained; name some with --data"
        )
    return parse(DataConfig, data, source=str(folder / CONFIG))


def quantise(
    args: Args, model: Model, config: QuantisedConfig, dataset: Dataset, probe: Probe
) -> Choice:
    """Calibrate, round, and choose the layers."""
    layers = candidates(model, config)
    check_answers(model, probe)
    if isinstance(model.config.linear, TernaryConfig):
        return choose(model, round_layers(model, layers, config, None), probe, kind=config.name)
    # Other images than those of the measurement.
    seen = None
    if args.calibrate:
        seen = Probe.of(model, dataset, images=args.calibrate, levels=args.levels, seed=1)
    rounded = round_layers(model, layers, config, seen, follow=follow("calibrating"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    errors = layer_errors(
        model, probe, layers, rounded, notes=_notes(args.out), key=_key(args, model),
        follow=follow("measuring the layers"),
    )  # fmt: skip
    target = None if args.layers == "all" else args.error or TARGETS.get(args.to)
    return choose(model, rounded, probe, kind=config.name, errors=errors, target=target)


def write_model(
    args: Args,
    model: Model,
    config: QuantisedConfig,
    choice: Choice,
    data: str,
    folder: Path,
) -> Model:
    """Write the quantised model into a hub-style folder, and read it back."""
    source = Path(args.checkpoint)
    known = read_folder(source).card if is_hub_folder(source) else Card()
    facts = {
        "data": data,
        "quantised": f"{config.name}, error {choice.error:.2%} of the network's output",
        "quantised from": args.checkpoint,
    }
    # Measurements of the source are not those of what is made of it.
    card = known.model_copy(update={"passports": (), "provenance": {**known.provenance, **facts}})
    changed = model.config.model_copy(update={"linear": config})
    with exchanged(model.network, choice.chosen):
        whole = replace(model, config=changed)
        export(whole, folder, card=card, name=args.out.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the licence: the user was told already
        return load(folder, device=model.device)


def report_of(
    args: Args, model: Model, config: QuantisedConfig, choice: Choice, data: str
) -> Report:
    """All that is known but the costs."""
    trained = isinstance(model.config.linear, TernaryConfig)
    return Report(
        source=args.checkpoint,
        weights=str(model.provenance.get("weights") or ""),
        linear=config.model_dump(mode="json"),
        data=data,
        images=args.images,
        calibration=0 if trained else args.calibrate,
        target=None if trained or args.layers == "all" else args.error or TARGETS.get(args.to),
        error=choice.error,
        levels=tuple(LevelRow(**gap._asdict()) for gap in choice.gaps),
        layers=tuple(LayerRow(**layer._asdict()) for layer in choice.layers),
        bits=bits_a_weight(model.network, choice.chosen),
        machine=machine(str(model.device)),
    )


def costs(args: Args, model: Model, written: Model, probe: Probe, folder: Path) -> dict[str, Cost]:
    """Bytes, memory and speed of the dense model in two precisions, and of the quantised one."""
    dense = isinstance(model.config.linear, DenseConfig)
    full = model if dense else baseline(model, torch.float32)
    models = {"fp32": full, "bf16": baseline(model, torch.bfloat16), args.to: written}
    found = {name: Cost(bytes=bytes_of(each.network)) for name, each in models.items()}
    if not args.measure:
        return found
    speeds = pace(models, probe[len(probe) // 2])
    asked: dict[str, Any] = {"images": len(probe.clean), "device": str(model.device)}
    weights = args.weights or None
    memory = {
        "fp32": peak_memory(args.checkpoint, weights=weights, **asked),
        "bf16": peak_memory(args.checkpoint, weights=weights, dtype="bfloat16", **asked),
        args.to: peak_memory(folder, **asked),
    }
    return {
        name: cost.model_copy(update={"peak": memory[name], "images_per_second": speeds[name]})
        for name, cost in found.items()
    }


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A name to write a folder under, which becomes ``out`` at the end, or nothing."""
    staging = out.with_name(f".{out.name}.quantizing")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _notes(out: Path) -> Path:
    """Where the errors of layers are kept until all is done."""
    return out.with_name(f".{out.name}.errors.json")


def _key(args: Args, model: Model) -> str:
    """What the errors of layers depend on."""
    asked = args.model_dump(mode="json", exclude={"out", "error", "layers", "draw", "measure"})
    return json.dumps([asked, weights_of(model).hash, __version__], sort_keys=True)


def _run_of(model: Model, data: DataConfig) -> RunConfig:
    """A run on these images, as far as opening them is concerned."""
    dense = model.config.model_copy(update={"linear": DenseConfig()})
    return RunConfig.model_validate({"model": dense, "data": data})


def _drawn(count: int, models: dict[str, Model]) -> list[tuple[str, np.ndarray]]:
    """A row of images of each model, from the same seeds and labels."""
    if not count:
        return []
    classes = next(iter(models.values())).classes
    labels = [i % classes for i in range(count)] if classes else None
    return [
        (name, generate(model, range(count), labels=labels).numpy())
        for name, model in models.items()
    ]


def _warn(choice: Choice) -> None:
    warnings.warn(
        f"these weights were not trained to be ternary: the network's output is off by "
        f"{choice.error:.0%}, and images will show it; train with --model.linear ternary instead",
        stacklevel=2,
    )
