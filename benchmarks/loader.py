"""Images per second of the loader, to be held against the training step.

    python benchmarks/loader.py [--seconds 3] [--out benchmarks/loader.json]

Three sets, made on the spot: the embedded digits, 32 px PNG in a zip (as `diffit data pack` writes
them), and a class folder of 64 px JPEG. Each with 0, 1 and 2 workers, first while images must be
decoded, then (digits and all that fits) from memory.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffit.data import Arrays, Dataset, open_dataset
from diffit.data.loader import Loader
from diffit.data.pack import pack

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each measurement")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        sets = make_sets(Path(folder))
        rows = [
            row for name, dataset in sets.items() for row in measure(name, dataset, args.seconds)
        ]
    print(f"{'set':24} {'from':8} {'workers':>7} {'images/s':>10}")
    for row in rows:
        print(f"{row['set']:24} {row['from']:8} {row['workers']:7} {row['images_per_s']:10,.0f}")
    if args.out:
        machine = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load_before": load,
            "batch": BATCH,
        }
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def make_sets(folder: Path) -> dict[str, Dataset]:
    """The embedded digits; patches as PNG in a zip; photographs as JPEG in class folders."""
    pack("builtin:patches", folder / "patches.zip")
    large = open_dataset("builtin:patches", size=64)
    for i in range(0, len(large), 2):
        image, label = large[i]
        place = folder / "photographs" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        picture.save(place / f"{i}.jpg", quality=90)
    return {
        "digits, 8 px": open_dataset("builtin:digits"),
        "zip of PNG, 32 px": open_dataset(folder / "patches.zip"),
        "folder of JPEG, 64 px": open_dataset(folder / "photographs"),
    }


def measure(name: str, dataset: Dataset, seconds: float) -> list[dict[str, object]]:
    """Images per second, decoding all the time and from memory."""
    rows: list[dict[str, object]] = []
    for workers in (0,) if isinstance(dataset, Arrays) else (0, 1, 2):
        with Loader(dataset, batch=BATCH, seed=0, flip=True, workers=workers, memory=0) as loader:
            rows.append(row(name, "files", workers, rate(loader, seconds)))
    with Loader(dataset, batch=BATCH, seed=0, flip=True) as loader:
        for _ in range(len(dataset) // BATCH + 1):
            next(loader)  # everything is in memory after one epoch
        rows.append(row(name, "memory", 0, rate(loader, seconds)))
    return rows


def row(name: str, source: str, workers: int, images_per_s: float) -> dict[str, object]:
    return {"set": name, "from": source, "workers": workers, "images_per_s": round(images_per_s)}


def rate(loader: Loader, seconds: float) -> float:
    """Images per second, after the workers have started and some batches lie ready."""
    for _ in range(8):
        next(loader)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        count += len(next(loader).image)
    return count / passed


if __name__ == "__main__":
    main()
