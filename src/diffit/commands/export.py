"""`diffit export CHECKPOINT --out FOLDER`: a model for programs without this library."""

import sys
import time
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from diffit.checkpoint import load
from diffit.config import Settings
from diffit.deploy.export import Kind, Precision, export
from diffit.errors import UsageError
from diffit.generation import refuse_restoring
from diffit.training.console import duration


class Args(Settings):
    """Export D(x, sigma, label) to ONNX or for torch.export, compared with PyTorch first.

    The folder also holds the decoder of latent models, what a sampler must know, and a sampler that
    needs numpy and onnxruntime alone.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, run, hub-style folder, file of published weights, or hub id."""
    out: Path
    """New folder for the exported model."""
    to: Kind = "onnx"
    """onnx, or torch: a .pt2 file for `torch.export.load`."""
    precision: Precision = "fp32"
    """Of the network; fp16 halves its size."""
    weights: str = ""
    """Set of weights, such as model or ema-0.9999; by default the recommended one."""
    steps: int | None = Field(default=None, gt=0, le=10_000)
    """Noise levels that are written beside the model; by default as many as it recommends."""
    guidance: float | None = Field(default=None, ge=0)
    """Guidance that is written beside the model; by default as it recommends."""
    tolerance: float | None = Field(default=None, gt=0)
    """Largest difference to PyTorch, relative to the largest value; by default 1e-4 in fp32 and
    0.02 in fp16."""
    codec: str = ""
    """Folder or hub id of the autoencoder, in place of the model's own."""


def run(args: Args) -> None:
    """Refuse what cannot work, export, compare, say what was made."""
    if args.out.exists():
        raise UsageError(f"--out {args.out} exists already; name a new folder")
    began = time.monotonic()
    model = load(args.checkpoint, weights=args.weights or None, codec=args.codec or None)
    refuse_restoring(model)
    settings = model.sampling
    if settings is not None:
        settings = settings.changed(steps=args.steps, guidance=args.guidance)
    made = export(
        model,
        args.out,
        kind=args.to,
        precision=args.precision,
        settings=settings,
        tolerance=args.tolerance,
        tell=lambda text: print(f"{text} ...", file=sys.stderr),
    )
    for name, size in made.files.items():
        error = made.errors.get(name.rpartition(".")[0])
        said = "" if error is None else f"  within {error:.1e} of PyTorch"
        print(f"{args.out / name}  {size / 1e6:,.1f} MB{said}")
    if args.to == "onnx":
        print(f"draw images:  python {args.out / 'sample.py'} --count 8 --out samples")
    print(f"{args.out} ({duration(time.monotonic() - began)})")
