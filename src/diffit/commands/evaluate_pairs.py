"""`diffit evaluate RESTORED --pairs ORIGINALS`: fidelity of images with the same file names."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diffit.commands.progress import follow
from diffit.data.files import is_hidden, is_image, printable
from diffit.data.images import read_image, write_atomic
from diffit.errors import DataError, UsageError
from diffit.evaluation.images import find_convention, psnr, ssim
from diffit.evaluation.lpips import Lpips, open_lpips
from diffit.evaluation.passport import versions
from diffit.evaluation.structure import ms_ssim, ssim_uniform

FORMAT = "diffit-pairs-1"
Measure = Callable[..., Tensor]
MEASURES: dict[str, Measure] = {
    "PSNR": psnr,
    "SSIM": ssim,
    "SSIM (uniform)": ssim_uniform,
    "MS-SSIM": ms_ssim,
}


def measure_pairs(
    restored: str,
    originals: Path,
    *,
    convention: str,
    factor: int,
    lpips_weights: Path | None,
    lpips_backbone: Literal["alex", "vgg", "squeeze"],
    out: Path | None,
) -> None:
    """Measure every pair, print the averages, write them with the value of each image."""
    rule = find_convention(convention)
    if factor < 1:
        raise UsageError(f"--factor {factor} must be 1 or more")
    if rule.crop == "factor" and factor == 1:
        raise UsageError(
            f"--convention {convention} cuts the enlargement's factor off the borders; give it "
            "with --factor"
        )
    network = None if lpips_weights is None else open_lpips(lpips_weights, lpips_backbone)
    names = paired_names(Path(restored), originals)
    rows, notes = [], []
    for place in follow("pairs")(range(len(names))):
        values, skipped = one_pair(Path(restored), originals, names[place], convention, factor)
        if network is not None:
            values |= _perceptual(network, Path(restored), originals, names[place])
        rows.append({"name": printable(names[place]), **values})
        notes += [note for note in skipped if note not in notes]
    result = {
        "format": FORMAT,
        "restored": restored,
        "originals": str(originals),
        "convention": {"name": convention, **rule._asdict(), "factor": factor},
        "lpips": None if network is None else {"name": network.name, "hash": network.hash},
        "means": means(rows),
        "pairs": rows,
        "versions": versions(),
        "notes": notes,
    }
    show(result, Console())
    if out is not None:
        write_atomic(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        print(f"wrote {out}")


def paired_names(restored: Path, originals: Path) -> list[str]:
    """File names that both folders have; refused unless they have the same ones."""
    found = []
    for folder in (restored, originals):
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder; --pairs compares two folders of images")
        files = (path.name for path in folder.iterdir() if path.is_file())
        found.append({name for name in files if is_image(name) and not is_hidden(name)})
        if not found[-1]:
            raise UsageError(f"{folder} holds no images; --pairs compares two folders of images")
    ours, theirs = found
    for lonely, place in ((ours - theirs, originals), (theirs - ours, restored)):
        if lonely:
            raise UsageError(
                f"{place} has no image {printable(min(lonely))!r}; pairs have the same file names "
                f"in both folders, and {len(lonely)} have not"
            )
    return sorted(found[0])


def one_pair(
    restored: Path, originals: Path, name: str, convention: str, factor: int
) -> tuple[dict[str, float | None], list[str]]:
    """Figures of a pair, None for an infinite one; and why others are missing."""
    a, b = (_read(folder / name) for folder in (restored, originals))
    if a.shape != b.shape:
        raise DataError(
            f"{restored / name} is {a.shape[3]} x {a.shape[2]} with {a.shape[1]} channels, "
            f"{originals / name} {b.shape[3]} x {b.shape[2]} with {b.shape[1]}; a pair has one size"
        )
    values: dict[str, float | None] = {}
    skipped = []
    for title, measure in MEASURES.items():
        try:
            value = float(measure(a, b, convention=convention, factor=factor))
        except DataError as error:
            if title == "PSNR":
                raise DataError(f"{restored / name}: {error}") from None
            skipped.append(f"{title} is left out: {error}")
            continue
        values[title] = value if math.isfinite(value) else None
    return values, skipped


def means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Averages over images, of the figures that all of them have; None if one is infinite."""
    titles = [title for title in rows[0] if title != "name" and all(title in row for row in rows)]
    columns = {title: [row[title] for row in rows] for title in titles}
    return {
        title: None if None in column else sum(column) / len(column)
        for title, column in columns.items()
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The averages as a table, and under which convention."""
    table = Table()
    table.add_column("figure", no_wrap=True)
    table.add_column("mean", justify="right")
    table.add_column("pairs", justify="right")
    for title, value in result["means"].items():
        text = "infinite: a pair is equal" if value is None else f"{value:.4f}"
        table.add_row(title, text, str(len(result["pairs"])))
    console.print(table)
    rule = result["convention"]
    crop = rule["factor"] if rule["crop"] == "factor" else rule["crop"]
    text = f"convention {rule['name']}: {rule['channel']}, {crop} pixels of border cut, "
    text += f"white is {rule['range']:g}"
    for line in (text, *(f"note: {note}" for note in result["notes"])):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _perceptual(
    network: Lpips, restored: Path, originals: Path, name: str
) -> dict[str, float | None]:
    a, b = (_read(folder / name) for folder in (restored, originals))
    return {f"LPIPS ({network.name.removeprefix('lpips-')})": float(network(a, b))}


def _read(path: Path) -> Tensor:
    return torch.from_numpy(read_image(path).copy())[None]
