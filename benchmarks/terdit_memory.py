"""Memory and time of a packed TerDiT: loading it, and one evaluation of D at 256 px, on the CPU.

    python benchmarks/terdit_memory.py [--preset terdit-4.2b-256] [--threads 1] [--out benchmarks]

Random codes of the preset's shapes, written to a temporary folder tensor by tensor: 1.1 GB for the
4.2B model. Fresh processes then load that folder as `diffit sample` does and evaluate D once, for
one image, each with another kind of activations, and say after each step how much memory they have
had at most. Also times the layer that modulates a block, for a guided batch of 8 images. Writes
terdit_memory.json.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffit
from diffit.fetch import file_sha256
from diffit.hub.folder import CONFIG, FileNote, HubConfig
from diffit.model import ModelConfig, empty_model
from diffit.networks.count import count_parameters
from diffit.nn.packed import PackedTernary, TernaryPackedConfig
from diffit.training.presets import read_config

KINDS = {torch.float32: "F32", torch.uint8: "U8"}
"""Our types to those of safetensors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="terdit-4.2b-256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.threads)))
        return
    from networks import processor  # brings libraries that would count in the measured processes

    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "what": f"{args.preset} packed, random codes: load, then D of one image",
        "processor": processor(),
        "threads": args.threads,
        "torch": torch.__version__,
    }
    for activations in ("full", "int8"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            config = packed(args.preset, activations)
            write(folder, config)
            result["bytes_on_disk"] = sum(file.stat().st_size for file in folder.iterdir())
            command = [sys.executable, __file__, "--measure", str(folder)]
            command += ["--threads", str(args.threads)]
            shown = subprocess.run(command, check=True, capture_output=True, text=True)
            result[f"activations {activations}"] = json.loads(shown.stdout)
    result["modulation_of_16_images_ms"] = modulation(args.preset)
    result["parameters"] = count_parameters(empty_model(config_of(args.preset)).network)
    (args.out / "terdit_memory.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(folder: Path, threads: int) -> dict[str, Any]:
    """Peak megabytes and processor seconds of each step, in this process."""
    torch.set_num_threads(threads)
    libraries = peak()
    began = time.process_time()
    model = diffit.load(folder)
    loaded, loading = peak(), time.process_time() - began
    kept = sum(tensor.nbytes for tensor in model.network.state_dict().values())
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    began = time.process_time()
    with torch.inference_mode():
        clean = model.denoiser(10 * x, torch.tensor(10.0), torch.tensor([207]))
    evaluating = time.process_time() - began
    assert clean.isfinite().all()
    return {
        "libraries_mb": round(libraries),
        "weights_mb": round(kept / 1e6),
        "loading_above_libraries_mb": round(loaded - libraries),
        "evaluating_above_libraries_mb": round(peak() - libraries),
        "peak_mb": round(peak()),
        "loading_cpu_seconds": round(loading, 1),
        "evaluating_cpu_seconds": round(evaluating, 1),
    }


def modulation(preset: str) -> dict[str, float]:
    """Processor milliseconds of the layer that modulates one block, for a guided batch of 8.

    Of one class it has two distinct conditions; of eight classes nine.
    """
    network: Any = config_of(preset).network
    shape = 6 * network.width, network.condition
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, shape, generator=draw, dtype=torch.int8)
    layer = PackedTernary.from_codes(codes, torch.full((1,), 0.02), activations="int8")
    found = {}
    for distinct in (2, 9, 16):
        rows = torch.randn(distinct, shape[1], generator=draw)
        x = rows[torch.arange(16) % distinct]
        best = float("inf")
        for _ in range(20):
            began = time.process_time()
            layer(x)
            best = min(best, time.process_time() - began)
        found[f"{distinct} distinct"] = round(1e3 * best, 2)
    return found


def peak() -> float:
    """Most megabytes (10^6 bytes) that this process has had in memory; Linux counts them.

    Not by `getrusage`: a new process inherits its parent's peak there.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = next(line for line in lines if line.startswith("VmHWM"))
    return int(found.split()[1]) * 1024 / 1e6


def config_of(preset: str) -> ModelConfig:
    """The model of a preset."""
    return read_config(preset).model


def packed(preset: str, activations: Any) -> ModelConfig:
    """The same, its layers packed."""
    linear = TernaryPackedConfig(activations=activations)
    return config_of(preset).model_copy(update={"linear": linear})


def write(folder: Path, config: ModelConfig) -> None:
    """A hub-style folder of random weights, of which no more than one is in memory."""
    folder.mkdir()
    file = folder / "model.safetensors"
    tensors = empty_model(config).network.state_dict()
    header, end = {}, 0
    for name, tensor in tensors.items():
        places = [end, end + tensor.nbytes]
        header[name] = {
            "dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places
        }  # fmt: skip
        end = places[1]
    text = json.dumps(header).encode()
    draw = torch.Generator().manual_seed(0)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            stream.write(random_like(name, tensor, draw).numpy().tobytes())
    note = FileNote(bytes=file.stat().st_size, sha256=file_sha256(file))
    content = HubConfig(model=config, files={file.name: note})
    (folder / CONFIG).write_text(content.model_dump_json(indent=1), encoding="utf-8")


def random_like(name: str, tensor: Tensor, draw: torch.Generator) -> Tensor:
    """Codes of which none is 3, scales that keep the size of activations, or other weights."""
    if tensor.dtype == torch.uint8:
        digits = [torch.arange(81) // 3**place % 3 << 2 * place for place in range(4)]
        valid = torch.stack(digits).sum(0).to(torch.uint8)
        return valid[torch.randint(81, tensor.shape, generator=draw, dtype=torch.int32)]
    if name.endswith("scale"):
        return torch.full(tensor.shape, 0.02)
    if name.endswith("norm.weight") or "norm1" in name or "norm2" in name:
        return torch.ones(tensor.shape)
    return 0.02 * torch.randn(tensor.shape, generator=draw)


if __name__ == "__main__":
    main()
