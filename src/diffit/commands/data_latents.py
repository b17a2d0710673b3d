"""`diffit data encode` and `diffit data convert-latents`."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffit.codecs import Autoencoder, AutoencoderConfig
from diffit.codecs.autoencoder import identify
from diffit.commands.progress import follow, in_bytes
from diffit.config import Settings, parse
from diffit.data import open_images
from diffit.data.encode import encode
from diffit.data.images import Background
from diffit.data.latent_range import scale_mistaken
from diffit.data.latents import LatentSet, Statistics
from diffit.data.layouts import CACHE, LAYOUTS, layout_of, open_latents
from diffit.data.layouts.convert import refuse_mistaken, write_cache, write_layout
from diffit.data.layouts.describe import describe
from diffit.distributed import pick_device
from diffit.errors import UsageError
from diffit.samples import available_cores, versions

LayoutName = Literal["diffit", "edm2", "repa", "fast-dit", "lightningdit", "mar", "uvit"]
WAYS = ("config", "auto", "channels")


class Encode(Settings):
    """Compute the latents of a data set once, so that training reads them instead of images."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder, zip or npz of images."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New folder for the cache. An interrupted call goes on where it stopped."""
    codec: str
    """The autoencoder: a folder in diffusers' layout, or a hub id such as
    stabilityai/sd-vae-ft-ema."""
    size: int | None = Field(default=None, ge=1, le=4096)
    """Crop the middle square and resize it to this side; needed unless all have one size."""
    flip: bool = False
    """Encode each image mirrored as well, so that training can flip."""
    labels: bool = True
    """Keep the classes, where there are any."""
    background: Background = "white"
    """What transparent parts become."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored numbers."""
    scale: str = "config"
    """How latents come to unit size: config (as the autoencoder says), auto (1 / their standard
    deviation), channels (shift and scale for each channel), or a number."""
    codec_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the autoencoder's computation."""
    batch: int = Field(default=1, ge=1, le=4096)
    """Images that go through the autoencoder at once; more than 1 is faster on a GPU."""
    processes: int = Field(default=1, ge=0, le=256)
    """Processes that encode; 0 takes one for each CPU core."""
    threads: int = Field(default=1, ge=1, le=256)
    """CPU threads of each process."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""


class ConvertLatents(Settings):
    """Write latents in the layout of another project, or theirs as a cache of this library."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Latents of any layout."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A free name; for edm2 it may end in .zip."""
    to: LayoutName = "diffit"
    """The layout to write."""
    origin: Annotated[LayoutName | None, tyro.conf.arg(name="from")] = None
    """The layout to read, where it cannot be recognised."""
    codec: str = ""
    """For a cache: the autoencoder that made the latents, folder or hub id."""
    scale: str = "config"
    """For a cache: as in `diffit data encode`."""
    dtype: Literal["float16", "float32"] | None = None
    """For a cache: of the stored numbers; by default as they are."""
    check: bool = True
    """Refuse latents whose numbers are not in the range that their layout promises."""


def run_encode(args: Encode) -> None:
    scaled = _scaling(args.scale)
    device = str(pick_device(args.device))
    processes = args.processes or available_cores()
    if device != "cpu" and processes > 1:
        raise UsageError(f"--processes is for CPUs; leave it out with --device {device}")
    dataset = open_images(
        args.source, size=args.size, channels=3, labels=args.labels, background=args.background
    )
    config = identify(AutoencoderConfig(path=args.codec))
    computing = config.model_copy(update={"precision": args.codec_precision, "slice": args.batch})
    encoded = encode(
        dataset,
        args.out,
        make=partial(Autoencoder, computing),
        posterior=config.kind == "kl",
        channels=cast(int, config.channels),
        factor=cast(int, config.factor),
        codec=lambda found: scaled(config, found).model_dump(mode="json"),
        finished=lambda codec: Autoencoder(_stored(codec)),
        plan={"source": str(Path(args.source).absolute()), "size": args.size,
              "labels": args.labels, "background": args.background, "scale": args.scale,
              "codec": config.weights_hash, "codec_precision": args.codec_precision,
              "batch": args.batch},
        dtype=args.dtype,
        mirrored=args.flip,
        processes=processes,
        device=device,
        threads=args.threads,
        source=f"encoded from {args.source}",
        versions=versions(),
        follow=follow("encoding"),
    )  # fmt: skip
    _say(encoded.latents)
    print(f"{args.out / 'check.png'}: originals and decoded latents, PSNR {encoded.psnr:.1f} dB")


def run_convert(args: ConvertLatents) -> None:
    scaled = _scaling(args.scale)
    latents = open_latents(args.source, args.origin)
    codec = _codec(args, latents) if args.to == CACHE else None
    if args.check:
        scale = codec.scale if codec is not None and args.scale == "config" else None
        refuse_mistaken(
            latents, scale, way_out="say what they are with --from, or insist with --no-check"
        )
    if codec is not None:
        written = write_cache(
            latents,
            args.out,
            codec=lambda found: scaled(codec, found).model_dump(mode="json"),
            dtype=args.dtype,
            versions=versions(),
            follow=follow("converting"),
        )
        _say(open_latents(args.out))
    else:
        scale = LAYOUTS[args.to].scale
        written = write_layout(latents, args.out, args.to, scale=scale, follow=follow("writing"))
        print(f"{args.out}: {written.images} latents in the layout of {args.to}")
    for sentence in written.lost:
        print(f"not kept: {sentence}")


def inspect_latents(latents: LatentSet, layout: str, *, as_json: bool) -> None:
    """Print what a set of latents is."""
    said = describe(latents, layout)
    if as_json:
        print(json.dumps({**said.facts, "classes": said.classes, "notes": said.notes}, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in _facts(said.facts, said.classes):
        table.add_row(name, escape(text))
    console = Console()
    console.print(table)
    for note in said.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"\ndata: {{path: {json.dumps(said.facts['path'])}}}", markup=False)


def _facts(facts: dict[str, Any], classes: dict[str, int]) -> list[tuple[str, str]]:
    channels, height, width = facts["shape"]
    codec = facts["codec"]
    lines = [
        ("set", f"{facts['path']}: latents in the layout of {facts['layout']}"),
        ("images", f"{facts['images']}{', and each mirrored' if facts['mirrored'] else ''}"),
        ("latents", f"{channels} channels of {height} x {width}, {facts['form']}, "
                    f"{facts['dtype']}"),
        ("pixels", "[-1, 1]" if facts["pixels"] == "-1..1" else "[0, 1], as EDM2 takes them"),
        ("classes", _some(classes) if classes else "none"),
        ("channel mean", _numbers(facts["channel_mean"])),
        ("channel std", _numbers(facts["channel_std"])),
        ("range", f"{facts['lowest']:.2f} to {facts['highest']:.2f}"),
    ]  # fmt: skip
    if facts["scaled_by"] != 1:
        lines.append(("scaled by", f"{facts['scaled_by']}, in the stored numbers already"))
    if codec:
        lines.append(("autoencoder", f"{codec['path']} ({codec['kind']})"))
        lines.append(("scale, shift", f"{codec['scale']}, {codec['shift']}"))
        lines.append(("scaled std", _numbers(facts["scaled_std"])))
    if facts["source"]:
        lines.append(("made", facts["source"]))
    return lines


def _some(classes: dict[str, int], most: int = 12) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(classes.items())[:most])
    return shown + (f" and {len(classes) - most} more" if len(classes) > most else "")


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values[:16]) + (", ..." if values[16:] else "")


def _say(latents: LatentSet) -> None:
    """One line on a cache, and a note if its latents are far from unit size."""
    facts, size = latents.facts, sum(file.stat().st_size for file in latents.path.iterdir())
    channels, height, width = facts.shape
    codec = latents.codec or {}
    print(
        f"{latents.path}: {facts.images} latents of {channels} x {height} x {width}"
        f"{', and as many mirrored' if facts.mirrored else ''}, {in_bytes(size)}, "
        f"scale {_short(codec.get('scale'))}, read back and whole"
    )
    sentence = scale_mistaken(cast(Any, latents.index).statistics, _stored(codec).scale or 1.0)
    if sentence:
        print(f"note: {sentence}; --scale auto computes one")


def _short(scale: Any) -> str:
    return ", ".join(f"{x:.4g}" for x in scale) if isinstance(scale, list) else f"{scale:.6g}"


def _stored(codec: dict[str, Any]) -> AutoencoderConfig:
    return parse(AutoencoderConfig, codec, source="the cache")


def _scaling(way: str) -> Any:
    """Autoencoder settings and statistics to the settings with scale and shift, as asked for."""
    if way in WAYS:
        return partial(_scaled, way)
    try:
        number = float(way)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"--scale is {way!r}; it must be {', '.join(WAYS)}, or a number above 0")
    return lambda config, _: config.model_copy(update={"scale": number, "shift": 0.0})


def _scaled(way: str, config: AutoencoderConfig, found: Statistics) -> AutoencoderConfig:
    if way == "config":
        return config
    if way == "auto":
        return config.model_copy(update={"scale": 1 / found.overall_std, "shift": 0.0})
    scales = tuple(1 / std for std in found.std)
    return config.model_copy(update={"scale": scales, "shift": found.mean})


def _codec(args: ConvertLatents, latents: LatentSet) -> AutoencoderConfig:
    """The autoencoder of a new cache: named, known from a cache, or usual for the layout."""
    if args.codec:
        return identify(AutoencoderConfig(path=args.codec))
    if latents.codec is not None:
        return _stored(latents.codec)
    layout = LAYOUTS[args.origin or layout_of(args.source) or "edm2"]
    if not layout.autoencoder:
        raise UsageError(
            f"{args.source} does not say which autoencoder made it; name it with --codec"
        )
    return AutoencoderConfig(
        path=layout.autoencoder, kind="kl", channels=latents.shape[0], factor=8,
        scale=layout.scale, shift=0.0,
    )  # fmt: skip


__all__ = ["ConvertLatents", "Encode", "inspect_latents", "run_convert", "run_encode"]
