"""What is made of a folder of drawn images once all are there; one image in memory at a time."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from diffit.data.example import Follow
from diffit.data.images import grid, to_png
from diffit.data.pack import pack
from diffit.samples import Plan, image_path, images_of, partial_path, write_here
from diffit.work import checksums

CHECKSUMS = "checksums.txt"
IN_GRID = 256


def write_checksums(out: Path, plan: Plan) -> str:
    """`checksums.txt`, for `sha256sum -c`; the SHA-256 of that file stands for all images."""
    data = "".join(checksums(out, plan)).encode()
    path = out / CHECKSUMS
    # Left as it is where it is right: what is newer than it was made of these very images.
    if not path.is_file() or path.read_bytes() != data:
        write_here(path, data)
    return hashlib.sha256(data).hexdigest()


def is_current(out: Path, name: str) -> bool:
    """Whether a file was made after the images had become what they are."""
    path = out / name
    return path.is_file() and path.stat().st_mtime_ns >= (out / CHECKSUMS).stat().st_mtime_ns


def write_index(out: Path, plan: Plan) -> None:
    """EDM's `dataset.json`: with it the drawn images are a data set."""
    content: dict[str, Any] = {"labels": None}
    if plan.labels and None not in plan.labels:
        root = out / "images"
        names = [image_path(out, i).relative_to(root).as_posix() for i in range(plan.count)]
        content["labels"] = [[name, plan.label(i)] for i, name in enumerate(names)]
        content["classes"] = plan.classes
    write_here(out / "images" / "dataset.json", (json.dumps(content) + "\n").encode())


def write_grid(out: Path, plan: Plan) -> None:
    """Up to `IN_GRID` images side by side, small ones enlarged; a column for each label if few."""
    turns = len(plan.labels) if plan.label_order == "turns" else 0
    columns = turns if 4 <= turns <= 20 and plan.count >= turns else None
    shown = min(plan.count, IN_GRID // (columns or 1) * (columns or 1))
    images = np.stack(list(images_of(out, range(shown))))
    scale = max(1, 64 // max(images.shape[2:]))
    write_here(out / "grid.png", to_png(grid(images, columns=columns, scale=scale)))


def write_npz(out: Path, plan: Plan, follow: Follow = iter) -> None:
    """`samples.npz` in ADM's layout: arr_0 (N, H, W, C) uint8, arr_1 (N,) int64 labels."""
    path = out / "samples.npz"
    partial = partial_path(path)
    c, h, w = next(images_of(out, [0])).shape
    # Stored with the default date: equal images make equal files.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (plan.count, h, w, c)}
            np.lib.format.write_array_header_1_0(file, header)
            for image in images_of(out, follow(range(plan.count))):
                file.write(np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes())
        if plan.labels and None not in plan.labels:
            labels = np.array([plan.label(i) for i in range(plan.count)], dtype=np.int64)
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                np.lib.format.write_array(file, labels)
    partial.replace(path)


def write_zip(out: Path, follow: Follow = iter) -> None:
    """`samples.zip` in EDM's layout."""
    path = out / "samples.zip"
    path.unlink(missing_ok=True)
    pack(str(out / "images"), path, follow=follow)
