"""`diffit bench networks`: every network on the same images, with as many parameters, as long."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from diffit import __version__
from diffit.checkpoint import checkpoints, load
from diffit.commands import evaluate, sample
from diffit.commands.bench_report import Entry, figures_line, write_reports
from diffit.commands.bench_restore import Restore, run_restore
from diffit.config import Settings, nearest
from diffit.data import DataConfig, Dataset, open_data, open_dataset
from diffit.data.builtin import BUILTIN, PREFIX
from diffit.diffusion.formulation import FlowConfig
from diffit.distributed import pick_device
from diffit.errors import UsageError
from diffit.evaluation.passport import read_passport
from diffit.model import ModelConfig
from diffit.networks import build_network
from diffit.networks.count import count_macs, count_parameters
from diffit.sampling import SamplingConfig
from diffit.training.contenders import CONTENDERS, contender
from diffit.training.ema import AverageConfig
from diffit.training.folder import is_run, locked, write_whole
from diffit.training.held_out import held_out_loss, note_held_out, read_held_out
from diffit.training.loop import Snapshot, train
from diffit.training.pace import measure_pace
from diffit.training.prepare import complete
from diffit.training.settings import RunConfig, TrainConfig

PLAN = "plan.json"
CLASSIFIERS = {"digits": "digits-cnn", "patches": "patches-cnn"}
"""Features for the built-in sets, which ship with the package."""


class Networks(Settings):
    """Train every network on the same images with as many parameters, and compare them.

    All learn flow matching with one recipe, for the same time or the same number of images, and
    are compared by their loss on images they have not seen. Interrupted? The same command
    continues.
    """

    out: Path = Path("bench-networks")
    """Folder for the runs, the table, the curves and the report."""
    data: str = "builtin:digits"
    """Images to train on: builtin:digits, builtin:patches, a folder or a zip."""
    held_out: str = ""
    """Images to compare on; for the built-in sets their held-out part."""
    networks: str = ",".join(CONTENDERS)
    """Which networks, by name."""
    parameters: int = Field(default=500_000, ge=1_000, le=2_000_000_000)
    """How many parameters each shall have; all come within 3 %."""
    minutes: float = Field(default=3.0, gt=0)
    """Training time of each: processor time on the CPU, else time on the clock."""
    images: int | None = Field(default=None, gt=0)
    """Train each on so many images instead of for a time."""
    patch: int = Field(default=2, ge=1)
    """Side of a patch, for networks with one size of patch."""
    batch: int = Field(default=64, gt=0)
    """Images of one step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of all."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is automatic mixed precision."""
    points: int = Field(default=16, ge=2, le=1000)
    """How often the loss is taken on the way."""
    samples: int = Field(default=500, ge=0)
    """Images that each draws in the end, for the distance to the real ones; 0 draws none."""
    features: str = ""
    """Features of that distance, as `diffit evaluate` knows them; the built-in sets have theirs."""
    seed: int = 0
    """Follows into the weights, the order of images and every draw."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: int = Field(default=1, ge=0, le=1024)
    """CPU threads; 0 leaves PyTorch its choice."""


def run_networks(args: Networks) -> None:
    """Plan, train, draw, measure, report; each part is left out if it is there already."""
    names = _names(args)
    device = pick_device(args.device)
    held_out_path, features = _held_out(args), _features(args)
    _refuse_taken(args.out)
    dataset = open_data(DataConfig(path=args.data))
    held_out = open_dataset(held_out_path, channels=_channels(dataset.shape[0]))
    if held_out.shape != dataset.shape or held_out.classes != dataset.classes:
        raise UsageError(
            f"{held_out_path} has other sizes or classes than {args.data}; name images of the same "
            "kind with --held-out"
        )
    with locked(args.out):
        plan = _plan(args, names, dataset, device)
        try:
            for place, name in enumerate(names, start=1):
                print(f"{place}/{len(names)}  {_describe(plan, name)}", flush=True)
                _train(args, plan, name, dataset, held_out, device)
                _measure(args, name, features)
        except KeyboardInterrupt:
            print("diffit: nothing is lost; repeat the command to continue", file=sys.stderr)
            raise
        entries = [_entry(args, plan, name) for name in names]
        written = write_reports(args.out, entries, plan)
    print("\n".join(figures_line(entry) for entry in entries))
    print(f"table, curves and report: {', '.join(map(str, written))}")


VERBS = {"networks": (Networks, run_networks), "restore": (Restore, run_restore)}


def _names(args: Networks) -> list[str]:
    names = [name.strip() for name in args.networks.split(",") if name.strip()]
    for name in names:
        if name not in CONTENDERS:
            raise UsageError(
                f"--networks {name!r} is unknown; {nearest(name, list(CONTENDERS))}, several "
                "separated by commas"
            )
    if not names:
        raise UsageError("--networks is empty; choose from " + ", ".join(CONTENDERS))
    return list(dict.fromkeys(names))


def _held_out(args: Networks) -> str:
    name = args.data.removeprefix(PREFIX)
    if args.held_out:
        return args.held_out
    if args.data.startswith(PREFIX) and f"{name}-test" in BUILTIN:
        return f"{args.data}-test"
    raise UsageError(
        f"{args.data} has no held-out part that is known; name images that are not trained on "
        "with --held-out"
    )


def _features(args: Networks) -> str:
    known = CLASSIFIERS.get(args.data.removeprefix(PREFIX), "")
    if args.samples and not (args.features or known):
        raise UsageError(
            "--samples needs --features, such as inception, to be measured; or draw none with "
            "--samples 0"
        )
    return args.features or known


def _channels(count: int) -> Literal[1, 3]:
    return 1 if count == 1 else 3


def _refuse_taken(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a new folder")
    others = [file for file in out.iterdir() if file.name != "lock"] if out.is_dir() else []
    if others and not (out / PLAN).is_file():
        raise UsageError(f"--out {out} holds other files; name a new folder")


def _plan(
    args: Networks, names: list[str], dataset: Dataset, device: torch.device
) -> dict[str, Any]:
    """What is compared, from the folder or made now: it holds the measured pace of each network."""
    asked = args.model_dump(mode="json", exclude={"out", "threads", "device"})
    path = args.out / PLAN
    if path.exists():
        plan: dict[str, Any] = _read(path)
        changed = sorted(k for k in asked if plan["asked"].get(k) != asked[k])
        if changed:
            raise UsageError(
                f"{args.out} was begun with another --{changed[0].replace('_', '-')}; repeat that "
                "command, or name a new folder"
            )
        return plan
    print(f"sizing {len(names)} networks to {args.parameters:,} parameters", flush=True)
    configs = {name: _config(args, name, dataset, images=args.batch) for name in names}
    print("measuring their pace", flush=True)
    pace = measure_pace(configs, dataset, device)
    plan = {
        "asked": asked,
        "classes": len(dataset.classes),
        "held": len(dataset),
        "device": str(device),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "versions": {"diffit": __version__, "torch": torch.__version__},
        "networks": {
            name: {
                "title": CONTENDERS[name].title,
                "network": configs[name].model.network.model_dump(mode="json"),
                "parameters": _parameters(configs[name]),
                "macs": count_macs(configs[name].model.network),
                "images_per_second": pace[name],
                "images": _images(args, pace[name]),
            }
            for name in names
        },
    }
    write_whole(path, json.dumps(plan, indent=1) + "\n")
    return plan


def _read(path: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"asked", "networks"} <= set(plan):
            raise ValueError
    except (ValueError, TypeError):
        raise UsageError(f"{path} is damaged; remove its folder and begin again") from None
    return plan


def _parameters(config: RunConfig) -> int:
    with torch.device("meta"):
        return count_parameters(build_network(config.model.network))


def _images(args: Networks, pace: float) -> int:
    """Length of a run, in whole batches; one at least."""
    wanted = args.images or 60 * args.minutes * pace
    return max(1, round(wanted / args.batch)) * args.batch


def _config(args: Networks, name: str, dataset: Dataset, *, images: int) -> RunConfig:
    """The run of a network; all differ in the network, its time and the length alone."""
    classes = len(dataset.classes)
    network = contender(
        name, args.parameters, shape=dataset.shape, classes=classes, patch=args.patch
    )
    # In whole batches, so that no point falls between two steps.
    every = max(1, images // args.points // args.batch) * args.batch
    config = RunConfig(
        model=ModelConfig(network=network, formulation=FlowConfig(time=CONTENDERS[name].time)),
        data=DataConfig(path=args.data),
        train=TrainConfig(
            images=images,
            batch=args.batch,
            lr=args.lr,
            warmup=min(20 * args.batch, images),
            betas=(0.9, 0.99),
            ema=AverageConfig(half_life=(500_000,), ramp=0.05),
            precision=args.precision,
            seed=args.seed,
            threads=args.threads,
            log_every=every,
            checkpoint_every=max(every, images // 4),
            keep_last=1,
            snapshot_every=every,
            tensorboard=False,
        ),
        sampling=SamplingConfig(sampler="heun", steps=12),
    )
    return complete(config, dataset)


def _describe(plan: dict[str, Any], name: str) -> str:
    entry = plan["networks"][name]
    return (
        f"{entry['title']}: {entry['parameters']:,} parameters, {entry['images']:,} images at "
        f"{entry['images_per_second']:,.0f} a second"
    )


def _train(
    args: Networks,
    plan: dict[str, Any],
    name: str,
    dataset: Dataset,
    held_out: Dataset,
    device: torch.device,
) -> None:
    """Train to the end, noting the held-out loss at every point."""
    run, images = args.out / "runs" / name, plan["networks"][name]["images"]
    resume = is_run(run) and bool(checkpoints(run))
    if resume and int(checkpoints(run)[-1].name) >= images:
        noted = read_held_out(run)
        if not noted or noted[-1]["images"] < images:  # killed between checkpoint and note
            note_held_out(run, images, held_out_loss(load(run, device=device), held_out))
        return

    def note(snapshot: Snapshot) -> None:
        note_held_out(run, snapshot.images, held_out_loss(snapshot.model, held_out))

    run.parent.mkdir(parents=True, exist_ok=True)
    config = _config(args, name, dataset, images=images)
    outcome = train(config, run, resume=resume, device=device, on_snapshot=note)
    if outcome.reason == "interrupted":
        raise KeyboardInterrupt


def _measure(args: Networks, name: str, features: str) -> None:
    """Draw images and measure their distance to the real ones."""
    passport, run = args.out / "evaluations" / f"{name}.json", args.out / "runs" / name
    if not args.samples or passport.exists():
        return
    drawn = args.out / "samples" / name
    drawn.parent.mkdir(exist_ok=True)
    sample.run(
        sample.Args(
            checkpoint=run,
            out=drawn,
            count=args.samples,
            device=args.device,
            threads=args.threads,
            sampling=SamplingConfig(sampler="heun", steps=12, unit=min(50, args.samples)),
        )
    )
    passport.parent.mkdir(exist_ok=True)
    evaluate.run(
        evaluate.Args(
            samples=str(drawn),
            reference=args.data,
            features=features,
            device=args.device,
            out=passport,
        )
    )


def _entry(args: Networks, plan: dict[str, Any], name: str) -> Entry:
    facts, path = plan["networks"][name], args.out / "evaluations" / f"{name}.json"
    figures = {f.name: f.value for f in read_passport(path).figures} if path.exists() else {}
    return Entry(
        name=name,
        title=facts["title"],
        parameters=facts["parameters"],
        macs=facts["macs"],
        pace=facts["images_per_second"],
        images=facts["images"],
        points=tuple((line["images"], line["loss"]) for line in read_held_out(_run(args, name))),
        by_level=tuple(read_held_out(_run(args, name))[-1]["loss_by_level"]),
        figures=figures,
    )


def _run(args: Networks, name: str) -> Path:
    return args.out / "runs" / name
