"""Time and memory of converting checkpoints of the size of the published ones.

    python benchmarks/convert.py [--folder FOLDER] [--out benchmarks/convert.json]
    python benchmarks/convert.py --model terdit-600m --out benchmarks/convert_terdit.json

The files hold random weights in the official layout: of DiffiT-XL/2 with the index buffers, of
TerDiT packed, with the arguments beside them. Each conversion is a process of its own; its peak
memory is what the system reports of it, which counts the parts of the file that are mapped.
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
from terdit_memory import packed, random_like

from diffit.convert import to_reference
from diffit.model import empty_model, fill
from diffit.networks import LatentDiffiTConfig, build_network
from diffit.nn.rotary import line_rotation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["diffit-xl", "terdit-600m"], default="diffit-xl")
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        terdit = args.model == "terdit-600m"
        source = folder / ("600M" if terdit else "diffit_256.safetensors")
        if not source.exists():
            # In a process of its own: those started later would be charged with this one's peak.
            write = make_terdit if terdit else make
            maker = multiprocessing.get_context("spawn").Process(target=write, args=(source,))
            maker.start()
            maker.join()
        ours = folder / args.model
        rows = [convert(source, ours, [])]
        if not terdit:
            rows += [convert(source, folder / "xl-512", ["--size", "512", "--no-certify"])]
        rows += [convert(ours, folder / "back", ["--to", "reference"])]
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


def make_terdit(folder: Path) -> None:
    """TerDiT-600M for 256 px as it is released: packed, every code random, 175 MB."""
    model = empty_model(packed("terdit-600m-256", "full"))
    draw = torch.Generator().manual_seed(0)
    tensors = model.network.state_dict().items()
    random = ((name, random_like(name, tensor, draw)) for name, tensor in tensors)
    fill(model, ((name, t) for name, t in random if name != "rotation"))
    model.network.rotation = line_rotation(256, 48)
    _, tensors, _ = to_reference(model.network)
    folder.mkdir(parents=True)
    torch.save(dict(tensors), folder / "consolidated_ema_ternary.00-of-01.pth")
    args = argparse.Namespace(
        model="DiT_Llama_600M_patch2", image_size=256, num_classes=1000, qk_norm=True
    )
    torch.save(args, folder / "model_args.pth")


def convert(source: Path, out: Path, options: list[str]) -> dict[str, object]:
    """One run of the command: seconds, peak memory, sizes."""
    words = ["convert", str(source), "--out", str(out), *options]
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "diffit", *words], stdout=subprocess.PIPE)
    output = process.stdout.read().decode() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words} failed")
    files = [source] if source.is_file() else source.glob("*.pth")
    size = sum(file.stat().st_size for file in files)
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
