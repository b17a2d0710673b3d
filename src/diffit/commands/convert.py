"""`diffit convert SOURCE --out FOLDER`: published weights to this library, and back."""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field
from torch import Tensor

from diffit.checkpoint import checkpoints, load
from diffit.config import Settings
from diffit.convert import FAMILIES
from diffit.convert.certificate import Certificate
from diffit.convert.converted import Converted, from_file
from diffit.convert.export import export
from diffit.convert.resize import Positions, resize
from diffit.errors import UsageError
from diffit.hub import Card, is_hub_folder, read_folder, write_folder
from diffit.hub import find as find_source
from diffit.model import Model, empty_model, fill
from diffit.sealed import STATE
from diffit.training.console import duration


class Args(Settings):
    """Convert published weights to a model of this library, or a model of it to other layouts.

    SOURCE is a .safetensors, .pt, .pth, .ckpt or .bin file, a folder of diffusers, or a checkpoint,
    run or hub-style folder of this library.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    out: Path
    """New folder for the result."""
    to: Literal["ours", "reference", "diffusers"] = "ours"
    """ours is a hub-style folder; reference are the names of the code that trains such networks."""
    family: str = ""
    """diffit, diffit-v2, dit, diffusers-dit, ...; by default the one that knows the tensors."""
    weights: str = ""
    """Set of weights of a training checkpoint, such as ema; by default the best one."""
    size: int | None = Field(default=None, gt=0, le=65_536)
    """Side of images, in pixels, that the result is for: position tables are interpolated."""
    positions: Positions = "scaled"
    """With --size: scaled keeps places in the picture, plain counts tokens of the new grid."""
    source_size: int | None = Field(default=None, gt=0, le=65_536)
    """Side of images, in pixels, that the weights are for, where they do not tell."""
    heads: int | None = Field(default=None, gt=0, le=4096)
    """Attention heads, where the weights do not tell."""
    codec: str = ""
    """Folder or hub id of the autoencoder; by default the one of the family."""
    licence: str = ""
    """Licence of the weights; by default that of the published ones."""
    approximate: bool = False
    """With --to diffusers: accept that it computes another function of a DiT, and say how other."""
    certify: bool = True
    """Compare with the source's own formulas; --no-certify saves the forward passes."""


def run(args: Args) -> None:
    """Refuse what cannot work; convert; say what was made and how well it agrees."""
    started = time.monotonic()
    if args.out.exists():
        raise UsageError(f"--out {args.out} exists already; name a new folder")
    if args.family and args.family not in FAMILIES:
        raise UsageError(f"--family {args.family!r} is unknown; choose from {', '.join(FAMILIES)}")
    if args.approximate and args.to != "diffusers":
        raise UsageError("--approximate is for --to diffusers alone")
    args = args.model_copy(update={"source": find_source(args.source)})
    _check_room(args)
    if is_ours(args.source):
        certificate, facts = _from_ours(args)
    else:
        certificate, facts = _from_foreign(args)
    facts = {**facts, **_said(certificate)} if certificate else facts
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name:{width}}  {text}")
    print(f"{args.out} ({duration(time.monotonic() - started)})")


def is_ours(path: Path) -> bool:
    """Whether a folder is a run, a checkpoint or a hub-style folder of this library."""
    if not path.is_dir():
        return False
    return is_hub_folder(path) or (path / STATE).is_file() or bool(checkpoints(path))


def _from_foreign(args: Args) -> tuple[Certificate, dict[str, str]]:
    converted = from_file(
        args.source,
        family=args.family or None,
        weights=args.weights or None,
        heads=args.heads,
        source_size=args.source_size,
        size=args.size,
        positions=args.positions,
        codec=args.codec or None,
        licence=args.licence or None,
        certify=args.certify,
        tell=_tell,
    )
    licence = converted.licence
    facts = {"licence": f"{licence.name}{f' ({licence.note})' if licence.note else ''}"}
    if args.to != "ours":
        certificate, todo = export(
            converted.model(), args.out, args.to, approximate=args.approximate
        )
        return certificate, facts | {"to do": "; ".join(todo)} if todo else facts
    _tell("writing the weights")
    _write_ours(converted, args.out)
    return converted.certificate, facts


def _from_ours(args: Args) -> tuple[Certificate | None, dict[str, str]]:
    for option in ("family", "source_size", "heads", "codec"):
        if getattr(args, option):
            raise UsageError(
                f"--{option.replace('_', '-')} is for weights of others; {args.source} is a model "
                "of this library"
            )
    model = load(args.source, weights=args.weights or None)
    facts = {}
    before, factor = model.shape[1], model.codec.factor
    if args.size is not None and args.size % factor:
        raise UsageError(f"--size {args.size} is no multiple of {factor}, the codec's factor")
    if args.size not in (None, before * factor):
        config, tensors = resize(
            model.config.network,
            model.network.state_dict(),
            args.size // factor,
            positions=args.positions,
        )
        model = _resized(model, config, tensors)
        facts["resized"] = f"{before} to {model.shape[1]} a side, positions {args.positions}"
    if args.to != "ours":
        certificate, todo = export(model, args.out, args.to, approximate=args.approximate)
        return certificate, facts | ({"to do": "; ".join(todo)} if todo else {})
    if not facts:
        raise UsageError(
            f"{args.source} is a model of this library already; choose --to reference or "
            "diffusers, or another --size"
        )
    write_folder(
        args.out,
        config=model.config,
        sampling=model.sampling,
        tensors=model.network.state_dict(),
        card=_card(args, facts),
    )
    return None, facts


def _card(args: Args, facts: dict[str, str]) -> Card:
    """What is known of the source, and what was done to it; its measurements are not this one's."""
    known = read_folder(args.source).card if is_hub_folder(args.source) else Card()
    named = {"licence": args.licence, "licence_url": "", "licence_note": ""} if args.licence else {}
    return known.model_copy(
        update={"passports": (), "provenance": {**known.provenance, **facts}, **named}
    )


def _resized(model: Model, config: Any, tensors: Mapping[str, Tensor]) -> Model:
    other = empty_model(model.config.model_copy(update={"network": config}))
    fill(other, tensors.items())
    other.sampling, other.provenance = model.sampling, model.provenance
    return other


def _write_ours(converted: Converted, out: Path) -> None:
    """The hub-style folder with its certificate; nothing of it under its name before the end."""
    staging = out.with_name(f".{out.name}.converting")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        write_folder(
            staging,
            config=converted.config,
            sampling=converted.sampling,
            tensors=converted.tensors,
            card=converted.card(),
            name=out.name,
        )
        text = json.dumps(converted.certificate.model_dump(mode="json"), indent=1)
        (staging / "certificate.json").write_text(text + "\n", encoding="utf-8")
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_room(args: Args) -> None:
    """UsageError if the disk cannot hold as much as the source has."""
    inside = args.source / "transformer"
    folder = inside if inside.is_dir() else args.source
    files = [args.source] if args.source.is_file() else [*folder.glob("*.safetensors")]
    needed = sum(file.stat().st_size for file in files)
    place = args.out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UsageError(
            f"{place} has {free / 1e9:.1f} GB free, and the weights need {needed / 1e9:.1f} GB; "
            "make room or choose another --out"
        )


def _said(certificate: Certificate) -> dict[str, str]:
    facts = {
        "family": f"{certificate.family}, {certificate.source}",
        "weights": f"{certificate.weights or certificate.file}, "
        f"{certificate.parameters:,} parameters",
        "tensors": f"{certificate.mapped} mapped"
        + (f", {certificate.dropped} checked and dropped" if certificate.dropped else ""),
        "sha256": certificate.sha256,
    }
    if (found := certificate.comparison) is not None:
        facts["difference"] = (
            f"{found.float64_relative:.1e} of the largest output in float64, "
            f"{found.float32_relative:.1e} in float32"
        )
    facts |= {"resized": certificate.resized} if certificate.resized else {}
    return facts | ({"note": certificate.note} if certificate.note else {})


def _tell(sentence: str) -> None:
    print(f"{sentence} ...", file=sys.stderr, flush=True)
