"""The reports of `diffit bench restore`: JSON, Markdown, and one page with pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffit.data.images import read_image
from diffit.report import page, pictures, section, table
from diffit.training.folder import write_whole

BASELINE = "baseline"
"""The row of a task that needs no model."""
SHOWN = 8
"""Images of each row in the report."""


@dataclass(frozen=True)
class Row:
    """One method on one task.

    Attributes:
        task, method: by name; the method may be `BASELINE`.
        metrics: name to the mean over all images.
        errors: name to the standard error of that mean.
        consistency: mean root mean square of A x - y.
        nfe: evaluations of the denoiser.
        seconds: an image.
        count: of images.
    """

    task: str
    method: str
    metrics: Mapping[str, float]
    errors: Mapping[str, float]
    consistency: float
    nfe: int
    seconds: float
    count: int

    @classmethod
    def of(cls, task: str, method: str, parts: Sequence[Mapping[str, Any]]) -> "Row":
        """A row from the figures of its batches."""
        each = [image for part in parts for image in part["metrics"]]
        columns = {name: [image[name] for image in each] for name in each[0]}
        sizes = [len(part["metrics"]) for part in parts]
        gaps = [gap for part in parts for gap in part["consistency"]]
        return cls(
            task=task,
            method=method,
            metrics={name: _mean(values) for name, values in columns.items()},
            errors={name: _error(values) for name, values in columns.items()},
            consistency=_mean(gaps),
            nfe=max(part["nfe"] for part in parts),
            seconds=sum(p["seconds"] * n for p, n in zip(parts, sizes, strict=True)) / len(each),
            count=len(each),
        )


def write_reports(
    out: Path, rows: Sequence[Row], about: str, left_out: Sequence[str]
) -> list[Path]:
    """Write results.json, table.md and report.html; their paths."""
    results = {"about": about, "left_out": list(left_out), "rows": [asdict(row) for row in rows]}
    write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
    head, lines = columns(rows)
    marks = ["---", "---", *["--:"] * (len(head) - 2)]
    text = "".join("| " + " | ".join(line) + " |\n" for line in [head, marks, *lines])
    write_whole(out / "table.md", f"{about}\n\n{text}")
    write_whole(out / "report.html", _page(out, rows, about, left_out))
    return [out / name for name in ("table.md", "report.html", "results.json")]


def columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table; gain is PSNR above the baseline of the task."""
    names = list(rows[0].metrics)
    naive = {row.task: row.metrics["PSNR"] for row in rows if row.method == BASELINE}
    head = ["task", "method", *names, "gain", "consistency", "NFE", "s / image"]
    lines = [
        [
            row.task,
            row.method,
            *(_figure(name, row) for name in names),
            "" if row.method == BASELINE else f"{row.metrics['PSNR'] - naive[row.task]:+.2f}",
            f"{row.consistency:.1e}",
            str(row.nfe) if row.nfe else "",
            f"{row.seconds:.2g}",
        ]
        for row in rows
    ]
    return head, lines


def summary_line(row: Row) -> str:
    """One row in a line."""
    values = "  ".join(f"{name} {_figure(name, row)}" for name in row.metrics)
    return f"{row.task:16} {row.method:10} {values}"


def sheet_path(out: Path, task: str, method: str, first: int) -> Path:
    """Where the images of a batch stand side by side."""
    return out / "images" / (task or "clean") / f"{method}-{first:06}.png"


def _figure(name: str, row: Row) -> str:
    digits = 2 if name == "PSNR" else 3
    return f"{row.metrics[name]:.{digits}f} ± {row.errors[name]:.{digits}f}"


def _page(out: Path, rows: Sequence[Row], about: str, left_out: Sequence[str]) -> str:
    head, lines = columns(rows)
    pieces = [section("Table", table(head, lines), note="± is the standard error of the mean.")]
    for task in dict.fromkeys(row.task for row in rows):
        methods = [row.method for row in rows if row.task == task]
        shown = [(_strip(sheet_path(out, "", "truth", 0)), "truth")]
        shown += [
            (_strip(sheet_path(out, task, method, 0)), method) for method in ["measured", *methods]
        ]
        pieces.append(section(task, pictures(shown)))
    if left_out:
        pieces.append(section("Left out", table(["what"], [[line] for line in left_out])))
    return page("Restoration", about, pieces)


def _strip(path: Path) -> np.ndarray:
    """The first images of a sheet."""
    sheet = read_image(path)
    return sheet[:, :, : SHOWN * sheet.shape[1]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
