"""The files of `diffit explain evaluate`: results, tables of certificates, pictures, one page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffit.commands.explain.arguments import PIXELS, grid_of
from diffit.commands.explain.examples import LabelledSet
from diffit.commands.explain.maps import spread
from diffit.commands.explain.measuring import Subject, attack
from diffit.commands.explain.pictures import Panel, Row, draw_maps, draw_panels
from diffit.commands.explain.plot import attack_panels
from diffit.commands.explain.tables import Parted, rows_of, tables
from diffit.data.images import read_image
from diffit.explain.measures.curve import RowWriter, certified_curve
from diffit.report import Tile, page, pictures, section, table, tiles
from diffit.training.folder import write_whole

SHOWN = 4
"""Images in the picture of maps."""


def write_reports(
    out: Path, results: dict[str, Any], examples: LabelledSet, subject: Subject, found: Parted
) -> dict[str, Path]:
    """Write everything; what is there to the path of its file."""
    units = results["asked"]["units"]
    curves = {
        way: write_table(out / f"certified-{way.replace(' ', '-')}.tsv", parts, units)
        for (stage, way, _), parts in found.items()
        if stage == "certified"
    }
    x = f"l2 radius, {PIXELS[units]}"
    certified = Panel("certified accuracy", x, "accuracy", curves, steps=True)
    written = {
        "results": out / "results.json",
        "curves": out / "certified.png",
        "attacks": out / "attacks.png",
        "maps": out / "maps.png",
        "report": out / "report.html",
    }
    write_whole(written["results"], json.dumps(results, indent=1) + "\n")
    draw_panels(written["curves"], [certified])
    draw_panels(written["attacks"], attack_panels(results))
    draw_examples(written["maps"], results, examples, subject, found)
    write_whole(written["report"], _page(results, written))
    return written


def write_table(path: Path, parts: Sequence[Any], units: Any) -> list[tuple[float, float]]:
    """Write the certificates of one way as a table; the curve of its certified accuracy."""
    path.unlink(missing_ok=True)
    rows = rows_of([one for part in parts for one in part], units)
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)
    return list(zip(*certified_curve(rows), strict=True))


def draw_examples(
    path: Path, results: dict[str, Any], examples: LabelledSet, subject: Subject, found: Parted
) -> None:
    """The first images, clean and attacked, with their maps plain and in the middle way."""
    attacks = results["attacks"]
    worst = attacks[len(attacks) // 2]["name"] if len(attacks) > 1 else "0"
    ways = list(results["seconds_per_image"])
    best = [way for way in ways if way.startswith("denoised")] or ways[1:]
    shown_ways = ["plain", best[len(best) // 2]]
    method = results["asked"]["methods"][-1]
    grid = grid_of(subject.opened.classifier, subject.parts.grid)
    count = min(SHOWN, len(examples))
    some = [examples[i] for i in range(count)]
    eps = next(a["eps"]["pm1"] for a in attacks if a["name"] == worst)
    asked = results["asked"]
    hit = attack(subject, some, eps, steps=asked["attack_steps"], name=asked["attack"])
    names = subject.opened.classifier.class_names
    rows = []
    for i, example in enumerate(some):
        pixels = ((hit[i].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
        cells: list[tuple[np.ndarray, np.ndarray | None]] = [(example.image, None), (pixels, None)]
        for way in shown_ways:
            for eps_name, image in (("0", example.image), (worst, pixels)):
                parts = found["attacked", "plain", eps_name]
                maps = [one for part in parts for one in part["maps"][way][method]]
                weights = torch.tensor(maps[i], dtype=torch.float64)
                cells.append((image, spread(weights, grid, example.image)))
        label = names[example.label] if example.label is not None else ""
        rows.append(Row(label, cells))
    head = ["clean", f"attacked {worst}"]
    head += [f"{way}{end}" for way in shown_ways for end in ("", ", attacked")]
    draw_maps(path, head, rows)


def _page(results: dict[str, Any], written: dict[str, Path]) -> str:
    asked = results["asked"]
    denoiser = results["denoiser"]
    lead = (
        f"{results['images']} images of {asked['data']}; {asked['n']:,} noisy copies behind a "
        f"certified label (alpha {asked['alpha']:g}), {asked['samples']} behind a map; "
        + ("one denoiser" if denoiser else "no denoiser")
        + f", seed {asked['seed']}."
    )
    pieces = [tiles(_tiles(results))]
    for name, title in (
        ("curves", "Certified accuracy"), ("attacks", "Under attack"), ("maps", "Explanations"),
    ):  # fmt: skip
        pieces.append(section(title, pictures([(read_image(written[name]), title)])))
    pieces += [section(title, table(head, rows)) for title, head, rows in tables(results)]
    note = (
        "A label's radius says nothing about its explanation, whose own radius is smaller. "
        "Estimates of radii are no certificates; the share that is certain is."
    )
    pieces.append(section("To be read with care", note=note))
    return page("Robust labels, faithful explanations", lead, pieces)


def _tiles(results: dict[str, Any]) -> list[Tile]:
    attacks = results["attacks"]
    middle = attacks[len(attacks) // 2]
    best = max(middle["accuracy"], key=lambda way: middle["accuracy"][way])
    return [
        Tile(f"{attacks[0]['accuracy']['plain']:.3f}", "clean accuracy", "plain"),
        Tile(f"{middle['accuracy']['plain']:.3f}", f"under attack {middle['name']}", "plain"),
        Tile(f"{middle['accuracy'][best]:.3f}", f"under attack {middle['name']}", best),
    ]
