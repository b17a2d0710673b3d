"""Time and memory of converting a checkpoint of the size of the published DiffiT-XL/2.

    python benchmarks/convert.py [--folder FOLDER] [--out benchmarks/convert.json]

The file holds random weights under the official names, the index buffers included. Each
conversion is a process of its own; its peak memory is what the system reports of it, which counts
the parts of the file that are mapped.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffit.convert import to_reference
from diffit.networks import LatentDiffiTConfig, build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        source = folder / "diffit_256.safetensors"
        if not source.exists():
            # In a process of its own: those started later would be charged with this one's peak.
            maker = multiprocessing.get_context("spawn").Process(target=make, args=(source,))
            maker.start()
            maker.join()
        rows = [convert(source, folder / "xl", [])]
        rows += [convert(source, folder / "xl-512", ["--size", "512", "--no-certify"])]
        rows += [convert(folder / "xl", folder / "back", ["--to", "reference"])]
    for row in rows:
        print(f"{row['seconds']:6.0f} s  {row['peak_gb']:5.2f} GB  {row['command']}")
    if args.out:
        machine = {"machine": platform.machine(), "threads": torch.get_num_threads(),
                   "load": round(os.getloadavg()[0], 1)}  # fmt: skip
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def make(path: Path) -> None:
    """XL/2 for 256 px, every weight random: 561 million of them, 2.26 GB."""
    torch.manual_seed(0)
    network = build_network(LatentDiffiTConfig(classes=1000, learned_variance=True))
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    _, tensors, _ = to_reference(network)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, path)


def convert(source: Path, out: Path, options: list[str]) -> dict[str, object]:
    """One run of the command: seconds, peak memory, sizes."""
    words = ["convert", str(source), "--out", str(out), *options]
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "diffit", *words], stdout=subprocess.PIPE)
    output = process.stdout.read().decode() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words} failed")
    size = source.stat().st_size if source.is_file() else 0
    return {
        "command": "diffit " + " ".join(Path(w).name if "/" in w else w for w in words),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * unit() / 1e9, 2),
        "file_gb": round(size / 1e9, 2),
        "output": output.replace(str(out.parent) + "/", ""),
    }


def unit() -> int:
    """Bytes in a unit of `ru_maxrss`: macOS counts bytes, Linux kilobytes."""
    return 1 if sys.platform == "darwin" else 1024


if __name__ == "__main__":
    main()
