"""Images a second of our networks against diffusers' `DiTPipeline`, at equal steps, on the CPU.

    python benchmarks/pipeline.py [--size B] [--steps 4] [--rounds 3] [--out benchmarks]

Random weights of one shape (DiT-B/2 and latent DiffiT-B/2 for 256 px), one autoencoder for all,
DDIM, guidance 4 on a doubled batch, everything from noise to pixels. The three take turns in one
run, on one thread, in CPU time; medians count. Needs the extra `bench`. Writes pipeline.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from diffit.codecs import AutoencoderConfig
from diffit.diffusion.formulation import DDPMConfig
from diffit.generation import generate
from diffit.model import ModelConfig, build_model, fill
from diffit.networks import DiTConfig, LatentDiffiTConfig
from diffit.networks.shared import SIZES
from diffit.sampling import SamplingConfig
from networks import processor

GUIDANCE = 4.0
Task = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=[*SIZES], default="B")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        autoencoder(Path(folder))
        for precision in ("fp32", "bf16"):
            tasks = {
                "diffusers DiT": theirs(Path(folder), precision, args),
                "DiT": ours(DiTConfig, Path(folder), precision, args),
                "DiffiT": ours(LatentDiffiTConfig, Path(folder), precision, args),
            }
            rows += measure(tasks, precision, args)
    machine = {"processor": processor(), "threads": 1, "torch": torch.__version__,
               "size": args.size, "steps": args.steps, "batch": args.batch}  # fmt: skip
    text = json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
    (args.out / "pipeline.json").write_text(text)


def measure(tasks: dict[str, Task], precision: str, args: argparse.Namespace) -> list[dict]:
    """A row for each: median seconds an image, and images a second over those of diffusers."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for round_ in range(args.rounds + 1):
        for name, task in tasks.items():
            began = time.process_time()
            task()
            if round_:  # the first is for warming up
                seconds[name].append((time.process_time() - began) / args.batch)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {
            "precision": precision,
            "network": name,
            "seconds_per_image": round(median, 3),
            "times_diffusers": round(medians["diffusers DiT"] / median, 3),
        }
        for name, median in medians.items()
    ]
    for row in rows:
        print(row, flush=True)
    return rows


def autoencoder(folder: Path) -> None:
    """A small one: what is compared is the rest."""
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        latent_channels=4,
    ).save_pretrained(folder)


def theirs(folder: Path, precision: str, args: argparse.Namespace) -> Task:
    """diffusers' pipeline; bf16 as its users have it, all weights in bfloat16."""
    depth, width, heads = SIZES[args.size]
    transformer = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=4,
        out_channels=8, num_layers=depth, sample_size=32, num_embeds_ada_norm=1000,
    )  # fmt: skip
    pipe = DiTPipeline(transformer, AutoencoderKL.from_pretrained(folder), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    if precision == "bf16":
        pipe.to(torch.bfloat16)
    labels = list(range(args.batch))
    return lambda: pipe(
        labels, guidance_scale=GUIDANCE, num_inference_steps=args.steps, output_type="np"
    )


def ours(kind: type, folder: Path, precision: str, args: argparse.Namespace) -> Task:
    """`diffit.generate` with the same work; bf16 as `diffit sample --precision bf16` loads it."""
    network = kind(classes=1000, learned_variance=True, **SIZES[args.size]._asdict())
    settings = ModelConfig(
        network=network, formulation=DDPMConfig(), codec=AutoencoderConfig(path=str(folder))
    )
    model = build_model(settings)
    low = torch.bfloat16 if precision == "bf16" else None
    fill(model, model.network.state_dict().items(), matrices=low)
    how = SamplingConfig(
        sampler="ddim", steps=args.steps, guidance=GUIDANCE, precision=precision, unit=args.batch
    )
    labels = list(range(args.batch))
    return lambda: generate(model, range(args.batch), labels=labels, settings=how)


if __name__ == "__main__":
    main()
