"""XL/2 in fewer bits, end to end on one CPU thread: the denoiser's speed, size and error.

    python benchmarks/quantize.py [--preset dit-xl-2-256] [--rounds 3] [--out benchmarks]

One network of random ternary weights in the preset's shape, in four forms: dense in float32 and in
bfloat16, ternary-packed and int8 with rounded activations. An evaluation is that of one guided
image: a batch of two. The forms are timed in turns, in CPU time, and the median counts. The error
is that of D and of the network's output against the dense float32 form, which computes with the
same weights exactly. Writes quantize.json.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from diffit.deploy.footprint import bytes_of
from diffit.deploy.probe import Answer, Noisy, answer, relative
from diffit.deploy.quantize_report import processor
from diffit.model import Model, ModelConfig, empty_model, fill
from diffit.nn.kernels import native
from diffit.nn.linears import DenseConfig
from diffit.nn.packed import PackedTernary, TernaryPackedConfig
from diffit.nn.quantized import Int8Config, Int8Linear
from diffit.nn.swap import linears_in
from diffit.nn.ternary import dequantise
from diffit.training.presets import read_config

PLACES = (0.1, 0.5, 0.9)
"""Where in the training law the noise levels of the error lie."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="dit-xl-2-256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(args.preset).model
    models = forms(config)
    given = inputs(models["fp32"], args.images)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for turn in range(args.rounds + 1):
            for name, model in models.items():
                began = time.process_time()
                answer(model, given[1])
                if turn:
                    seconds[name].append(time.process_time() - began)
        exact = [answer(models["fp32"], each) for each in given]
        rows = [row(name, m, seconds, given, exact) for name, m in models.items()]
    result = {
        "what": f"{args.preset}, random ternary weights, {args.images} images at once",
        "machine": {
            "processor": processor(), "threads": 1, "torch": torch.__version__,
            "kernel": "C++" if native.levels() else "PyTorch",
            "load": round(os.getloadavg()[0], 1),
        },
        "rounds": args.rounds,
        "sigmas": [float(each.sigma) for each in given],
        "forms": rows,
    }  # fmt: skip
    (args.out / "quantize.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def forms(config: ModelConfig) -> dict[str, Model]:
    """The same weights in every form."""
    dense = config.model_copy(update={"linear": DenseConfig()})
    packed = config.model_copy(update={"linear": TernaryPackedConfig(activations="int8")})
    whole = Int8Config(activations="int8")
    models = {name: empty_model(dense) for name in ("fp32", "bf16")}
    models["ternary-packed"] = empty_model(packed)
    models["int8"] = empty_model(config.model_copy(update={"linear": whole}))
    source = torch.Generator().manual_seed(0)
    layers = linears_in(models["fp32"].network)
    for name, tensor in models["fp32"].network.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        random = torch.randn(tensor.shape, generator=source) * 0.02
        if owner not in layers or leaf != "weight":
            for each, model in models.items():
                give(model, {name: random}, low=each == "bf16")
            continue
        # 69 % of codes are not 0; with this scale unit inputs give unit outputs.
        codes = torch.randint(0, 100, tensor.shape, generator=source)
        codes = (codes < 35).to(torch.int8) - (codes >= 66).to(torch.int8)
        scale = torch.tensor([(0.69 * tensor.shape[1]) ** -0.5])
        weight = dequantise(codes, scale)
        give(models["fp32"], {name: weight})
        give(models["bf16"], {name: weight}, low=True)
        tight = PackedTernary.from_codes(codes, scale)
        give(models["ternary-packed"], {f"{owner}.codes": tight.codes, f"{owner}.scale": scale})
        layer = torch.nn.Linear(*reversed(weight.shape), bias=False, device="meta")
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        made = Int8Linear.of(layer, whole)
        give(models["int8"], {f"{owner}.codes": made.codes, f"{owner}.scale": made.scale})
    return models


def give(model: Model, tensors: dict[str, torch.Tensor], *, low: bool = False) -> None:
    """Fill in some tensors; in bfloat16 if ``low``."""
    fill(model, tensors.items(), dtype=torch.bfloat16 if low else None)


def inputs(model: Model, images: int) -> list[Noisy]:
    """The same image at several levels."""
    source = torch.Generator().manual_seed(1)
    clean = torch.randn(images, *model.shape, generator=source)
    noise = torch.randn(images, *model.shape, generator=source)
    label = torch.arange(images) % max(model.classes, 1) if model.classes else None
    sigmas = model.formulation.training_sigma(torch.tensor(PLACES, dtype=torch.float64))
    return [Noisy(clean + float(sigma) * noise, sigma, label) for sigma in sigmas]


def row(
    name: str,
    model: Model,
    seconds: dict[str, list[float]],
    given: list[Noisy],
    exact: list[Answer],
) -> dict[str, Any]:
    """What one form costs, and how far it is off."""
    found = [answer(model, each) for each in given]
    times = {key: statistics.median(each) for key, each in seconds.items()}
    return {
        "form": name,
        "seconds": round(times[name], 3),
        "spread": [round(min(seconds[name]), 3), round(max(seconds[name]), 3)],
        "images_per_second": round(len(given[0].x) / times[name], 3),
        "times_bf16": round(times["bf16"] / times[name], 2),
        "times_fp32": round(times["fp32"] / times[name], 2),
        "weight_bytes": bytes_of(model.network),
        "error_of_d": [
            float(f"{relative(e.clean, f.clean):.2g}") for e, f in zip(exact, found, strict=True)
        ],
        "error_of_output": [
            float(f"{relative(e.raw, f.raw):.2g}") for e, f in zip(exact, found, strict=True)
        ],
    }


if __name__ == "__main__":
    main()
