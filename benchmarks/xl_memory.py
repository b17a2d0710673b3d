"""Peak memory of `diffit sample` with latent DiffiT-XL/2 at 256 px, the autoencoder's decoder too.

    python benchmarks/xl_memory.py [--steps 2] [--precision bf16] [--out benchmarks]

Random weights of the published shapes: 561 million in the network, kept in bfloat16 on disk, and
Stable Diffusion's autoencoder. One image, guided, on one CPU thread, in a fresh process; the peak
is that process's own, libraries, loading and decoding included. Needs the extra `bench` and 2 GB
of disk. Writes xl_memory.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from diffit.codecs import AutoencoderConfig
from diffit.diffusion.formulation import DDPMConfig
from diffit.hub import Card, write_folder
from diffit.model import ModelConfig, build_model
from diffit.networks import LatentDiffiTConfig, build_network
from diffit.networks.count import count_parameters
from diffit.protocols import PROTOCOLS
from networks import processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        build(args.build)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Each in a process of its own: the peak below is that of the largest child.
        python = [sys.executable, __file__, "--build", str(folder)]
        subprocess.run(python, check=True)
        command = [
            "sample", str(folder / "xl"), "--out", str(folder / "samples"), "--protocol",
            "official-256", "--steps", str(args.steps), "--count", "1", "--unit", "1",
            "--precision", args.precision, "--threads", "1", "--device", "cpu",
        ]  # fmt: skip
        began = time.monotonic()
        peak = run_measured([sys.executable, "-m", "diffit", *command])
        seconds = time.monotonic() - began
    result = {
        "what": "diffit sample, latent DiffiT-XL/2 at 256 px with Stable Diffusion's autoencoder, "
        "random weights, one guided image",
        "command": "diffit " + " ".join(["sample", "XL", *command[4:]]),
        "peak_mib": round(peak),
        "seconds": round(seconds, 1),
        "parameters": parameters(),
        "processor": processor(),
        "torch": torch.__version__,
    }
    (args.out / "xl_memory.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def run_measured(command: list[str]) -> float:
    """Peak MiB of a command, by a parent that starts nothing else."""
    watcher = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", watcher, *command], check=True, capture_output=True, text=True
    )
    unit = 1024 if sys.platform != "darwin" else 1 << 20
    return float(shown.stdout.split()[-1]) / unit


def parameters() -> int:
    with torch.device("meta"):
        return count_parameters(build_network(config().network))


def config(autoencoder: str = "autoencoder") -> ModelConfig:
    return ModelConfig(
        network=LatentDiffiTConfig(classes=1000, learned_variance=True),
        formulation=DDPMConfig(),
        codec=AutoencoderConfig(path=autoencoder),
    )


def build(folder: Path) -> None:
    """Write the model and the autoencoder."""
    from diffusers import AutoencoderKL

    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    ).save_pretrained(folder / "autoencoder")
    settings = config(str(folder / "autoencoder"))
    model = build_model(settings)
    tensors = {k: v.bfloat16() for k, v in model.network.state_dict().items()}
    write_folder(
        folder / "xl",
        config=settings,
        sampling=PROTOCOLS["official-256"].sampling,
        tensors=tensors,
        card=Card(licence="none", source="random weights"),
    )


if __name__ == "__main__":
    main()
