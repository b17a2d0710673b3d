"""`diffit data inspect`, `pack`, `index`, `encode` and `convert-latents`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffit.commands.data_latents import (
    ConvertLatents,
    Encode,
    inspect_latents,
    run_convert,
    run_encode,
)
from diffit.commands.progress import follow, in_bytes
from diffit.config import Settings
from diffit.data.images import Background, write_png
from diffit.data.index_shards import index_shards
from diffit.data.inspect import Survey, survey
from diffit.data.layouts import layout_of, open_latents
from diffit.data.pack import Packed, pack
from diffit.data.pack_shards import pack_shards
from diffit.data.stream_config import StreamConfig
from diffit.errors import UsageError

LINES = 12
"""How many lines of a long list are printed; `--json` has all."""


class Inspect(Settings):
    """Say what is in a data set, and draw a contact sheet."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A folder, zip or npz of images, shards, latents, or builtin:digits, builtin:patches."""
    sheet: Path | None = Path("contact-sheet.png")
    """Where the contact sheet is drawn; None draws none."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print everything as JSON."""


class Pack(Settings):
    """Write a data set of equal PNG images with its labels: as one zip, or as shards."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder, zip or npz of images, or shards."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The zip, or the new folder for shards. An interrupted call goes on where it stopped."""
    format: Literal["zip", "webdataset"] = "zip"
    """One zip, or tar shards in the WebDataset convention with an index."""
    shard_mib: int = Field(default=256, ge=1, le=65536)
    """Largest shard in MiB."""
    shuffle: bool = True
    """Mix the images of shards: training mixes those of some shards at a time alone."""
    size: int | None = Field(default=None, ge=1, le=4096)
    """Crop the middle square and resize it to this side; needed unless all have one size."""
    channels: Literal[1, 3] | None = None
    """1 converts to grey, 3 to RGB; by default whichever the images have."""
    labels: bool = True
    """Keep the classes, where there are any."""
    background: Background = "white"
    """What transparent parts become."""
    skip_unreadable: bool = False
    """Leave out what cannot be read, instead of stopping there."""


def run_inspect(args: Inspect) -> None:
    if args.sheet is not None and args.sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet {args.sheet} must end in .png")
    if layout := layout_of(args.path):
        inspect_latents(open_latents(args.path, layout), layout, as_json=args.as_json)
        return
    found = survey(args.path, follow=follow("reading"))
    if args.sheet is not None and found.sheet is not None:
        write_png(args.sheet, found.sheet)
    if args.as_json:
        print(json.dumps(_as_json(found, args.sheet), indent=2))
    else:
        _show(found, args.sheet)


def run_pack(args: Pack) -> None:
    make: Callable[..., Packed] = pack
    if args.format == "webdataset":
        make = partial(pack_shards, shuffle=args.shuffle, shard_mib=args.shard_mib)
    packed = make(
        args.source,
        args.out,
        size=args.size,
        channels=args.channels,
        labels=args.labels,
        background=args.background,
        skip_unreadable=args.skip_unreadable,
        follow=follow("packing"),
    )
    for reason in packed.left_out:
        print(f"left out: {reason}")
    print(f"{args.out}: {packed.images} images, {in_bytes(packed.bytes)}, read back and whole")


class Index(Settings):
    """Write an index of shards that others made, so that any image of them can be found."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """A folder, pattern or address of tar, parquet or Arrow files, each read once."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Where to write it: beside local shards, anywhere for remote ones; called shards.json."""
    classes: tuple[str, ...] = ()
    """Names of the labels; by default those that the files tell, or their numbers."""
    cache: str = ""
    """Folder for copies of remote shards; by default in ~/.cache/diffit."""


def run_index(args: Index) -> None:
    index = index_shards(
        args.source,
        args.out,
        classes=args.classes,
        config=StreamConfig(cache=args.cache),
        follow=follow("reading"),
    )
    classes = f", {len(index.classes)} classes" if index.classes else ""
    print(f"{args.out}: {index.images} images in {len(index.shards)} shards{classes}")


VERBS = {
    "inspect": (Inspect, run_inspect),
    "pack": (Pack, run_pack),
    "index": (Index, run_index),
    "encode": (Encode, run_encode),
    "convert-latents": (ConvertLatents, run_convert),
}


def _as_json(found: Survey, sheet: Path | None) -> dict[str, Any]:
    return {
        "path": found.path,
        "layout": found.layout,
        "images": found.images,
        "unreadable": found.unreadable,
        "sizes": [[w, h, n] for (w, h), n in found.sizes.most_common()],
        "pixels": dict(found.pixels),
        "classes": found.classes,
        "duplicates": found.duplicates,
        "other_files": dict(found.others),
        "hidden": found.hidden,
        "refusal": found.refusal,
        "memory_bytes": found.memory,
        "settings": found.settings,
        "notes": found.notes,
        "sheet": str(sheet) if sheet is not None and found.sheet is not None else None,
    }


def _show(found: Survey, sheet: Path | None) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in _facts(found):
        table.add_row(name, escape(text))
    console = Console()
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    settings = ", ".join(f"{key}: {json.dumps(value)}" for key, value in found.settings.items())
    console.print(f"\ndata: {{{settings}}}", markup=False)
    if sheet is not None and found.sheet is not None:
        console.print(f"contact sheet: {sheet}", markup=False)


def _facts(found: Survey) -> list[tuple[str, str]]:
    copies = sum(len(names) - 1 for names in found.duplicates)
    facts = [
        ("set", f"{found.path}: {found.layout}"),
        ("images", str(found.images)),
        ("sizes", _counts({f"{w} x {h}": n for (w, h), n in found.sizes.most_common()})),
        ("pixels", _counts(dict(found.pixels.most_common()))),
        ("classes", _counts(found.classes) if found.classes else "none"),
        ("in memory", in_bytes(found.memory)),
        ("duplicates", f"{copies} {'copy' if copies == 1 else 'copies'}" if copies else "none"),
    ]
    facts += [("", _copies(names)) for names in found.duplicates[:LINES]]
    if found.others:
        facts.append(("other files", _counts(dict(found.others.most_common()))))
    if found.hidden:
        facts.append(("hidden", f"{found.hidden} hidden files or folders passed over"))
    if found.unreadable:
        facts.append(("unreadable", str(len(found.unreadable))))
        facts += [("", reason) for reason in list(found.unreadable.values())[:LINES]]
    return facts


def _copies(names: list[str]) -> str:
    more = f" = {len(names) - 2} more" if len(names) > 2 else ""
    return f"{names[0]} = {names[1]}{more}"


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} ({n})" for name, n in list(counts.items())[:LINES]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
