"""Time and memory of autoencoders: `python benchmarks/codecs.py [FOLDER ...] [--size 256 512]`.

Each is timed in a process of its own, so that its peak of memory is its own. Without a folder the
network of Stable Diffusion's autoencoder is measured with random weights: time depends on its shape
alone. Times are CPU seconds on the CPU, where they do not depend on what else a machine does.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from diffit.codecs import Autoencoder, AutoencoderConfig

REPEATS = 3


def main() -> None:
    """One line for each autoencoder and size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER")
    parser.add_argument("--size", type=int, nargs="+", default=[256])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(args.one, args.size[0], args.device, args.precision, args.tile))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for folder in args.folders or [stable_diffusion(Path(scratch) / "sd-size")]:
            for size in args.size:
                words = ["--one", folder, "--size", str(size), "--device", args.device]
                words += ["--precision", args.precision, "--tile", str(args.tile)]
                subprocess.run([sys.executable, __file__, *words], check=True)


def measure(folder: str, size: int, device: str, precision: str, tile: int) -> str:
    """Encoding and decoding of one image, the best of some repetitions."""
    torch.set_num_threads(1)
    codec = Autoencoder(AutoencoderConfig(path=folder, precision=precision, tile=tile))
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, device=device)
    x = codec.encode(image)
    encode = min(seconds(lambda: codec.encode(image), device) for _ in range(REPEATS))
    decode = min(seconds(lambda: codec.decode(x), device) for _ in range(REPEATS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**30
    name = Path(folder).name
    return (
        f"{name}  {size} px  {precision}  encode {encode:.3f} s  decode {decode:.3f} s  "
        f"peak {peak:.2f} GiB"
    )


def seconds(run, device: str) -> float:
    """CPU seconds of this process, or on an accelerator those on the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = clock()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def stable_diffusion(folder: Path) -> str:
    """The shape of Stable Diffusion's autoencoder, 83.7 M weights, filled at random."""
    from diffusers import AutoencoderKL

    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    ).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
