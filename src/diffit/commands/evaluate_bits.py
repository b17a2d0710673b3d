"""`diffit evaluate IMAGES --metrics bpd --model RUN`: how many bits a model needs for an image."""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffit.checkpoint import load
from diffit.commands.progress import follow
from diffit.data import Dataset
from diffit.data.images import write_atomic
from diffit.distributed import pick_device
from diffit.draws import generator
from diffit.errors import DataError, UsageError
from diffit.evaluation.passport import versions
from diffit.generation import units
from diffit.model import Model
from diffit.samplers.likelihood import dequantised, likelihood, lower_end

UNIT = 8
"""Images computed together, the last unit filled up: values do not depend on how many there are."""
FORMAT = "diffit-bits-1"
TOLERANCE = 1e-5
"""Relative and absolute tolerance of the flow, as published."""


class Bits(NamedTuple):
    """Bits per dimension of one image, and the evaluations of its unit."""

    image: int
    bits: float
    nfe: int


def measure_bits(
    checkpoint: str, samples: Dataset, *, path: str, out: Path | None, seed: int, device: str
) -> None:
    """Measure, write, print; what was measured before a kill is read from beside ``out``."""
    model = load(checkpoint, device=pick_device(device))
    check_model(model, samples, checkpoint)
    head = _head(model, samples, path, seed)
    partial = None if out is None else out.with_name(out.name + ".part")
    done = {} if partial is None else _resume(partial, head)
    if done:
        print(f"{len(done)} of {len(samples)} images are measured already", file=sys.stderr)
    todo = [u for u in units(len(samples), UNIT) if any(i not in done for i in u.places)]
    for place in follow("likelihood")(range(len(todo))):
        places, kept = todo[place]
        rows = bits_of(model, samples, places, seed=seed)[:kept]
        done |= {row.image: row for row in rows}
        if partial is not None:
            with partial.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row._asdict()) + "\n" for row in rows))
    result = summary(head, [done[i] for i in range(len(samples))])
    _print(result)
    if out is not None and partial is not None:
        write_atomic(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        partial.unlink(missing_ok=True)
        print(f"wrote {out}")


def bits_of(model: Model, samples: Dataset, places: list[int], *, seed: int) -> list[Bits]:
    """Bits per dimension of a unit; noise of dequantisation and probe follow from (seed, place)."""
    shape = model.shape
    draws = [generator(seed, i, "dequantise").random(shape) for i in places]
    signs = [generator(seed, i, "probe").integers(0, 2, shape) * 2.0 - 1 for i in places]
    stacked = torch.stack([torch.from_numpy(samples[i].image.copy()) for i in places])
    images = dequantised(stacked, torch.stack([torch.from_numpy(d) for d in draws]))
    probe = torch.stack([torch.from_numpy(sign) for sign in signs])
    label = _labels(model, samples, places)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        clean: Tensor = model.denoiser(x, sigma, label)
        return clean

    try:
        found = likelihood(
            denoise,
            images.to(model.device),
            model.formulation,
            probe=probe.to(model.device),
            rtol=TOLERANCE,
            atol=TOLERANCE,
        )
    except ValueError as error:
        raise DataError(f"images {places[0]} to {places[-1]} cannot be measured: {error}") from None
    bits = found.bits.tolist()
    if not all(map(math.isfinite, bits)):
        raise DataError(
            f"images {places[0]} to {places[-1]} have no finite likelihood under this model; "
            "train it further or look at its samples first"
        )
    return [Bits(i, value, found.nfe) for i, value in zip(places, bits, strict=True)]


def check_model(model: Model, samples: Dataset, name: str) -> None:
    """UsageError unless the model has a likelihood of these images."""
    if model.formulation.restores:
        raise UsageError(
            f"{name} restores images and has no likelihood; name a model that makes them"
        )
    if model.codec.factor != 1:
        raise UsageError(f"{name} draws latents; bits per dimension are of a model of pixels")
    if model.shape != samples.shape:
        shown = [f"{w} x {h} x {c}" for c, h, w in (samples.shape, model.shape)]
        raise UsageError(
            f"the images are {shown[0]}, the model {name} is of {shown[1]}; bring the images to "
            "that with --size and --channels"
        )
    if not len(samples):
        raise UsageError("there are no images to measure")


def summary(head: dict[str, Any], rows: list[Bits]) -> dict[str, Any]:
    """The record of a measurement: mean, its standard error, and the value of each image."""
    bits = torch.tensor([row.bits for row in rows], dtype=torch.float64)
    error = float(bits.std() / len(bits) ** 0.5) if len(bits) > 1 else None
    return {
        **head,
        "bits_per_dimension": float(bits.mean()),
        "standard_error": error,
        "evaluations": max(row.nfe for row in rows),
        "images": [row.bits for row in rows],
        "versions": versions(),
    }


def _labels(model: Model, samples: Dataset, places: list[int]) -> Tensor | None:
    """Those of the set, where the model has just its classes; else "no class"."""
    if not model.classes:
        return None
    ours = _conditional(model, samples)
    found = [samples.label(i) if ours else None for i in places]
    none = model.classes
    return torch.tensor([none if x is None else x for x in found], device=model.device)


def _conditional(model: Model, samples: Dataset) -> bool:
    return bool(samples.classes) and samples.classes == model.config.class_names


def _head(model: Model, samples: Dataset, path: str, seed: int) -> dict[str, Any]:
    """All that the figures depend on."""
    digest = hashlib.sha256()
    for i in range(len(samples)):
        digest.update(samples[i].image.tobytes())
    return {
        "format": FORMAT,
        "samples": path,
        "count": len(samples),
        "shape": list(samples.shape),
        "hash": digest.hexdigest(),
        "model": json.loads(json.dumps(model.provenance, default=str)),
        "formulation": model.formulation.name,
        "lowest_sigma": lower_end(model.formulation),
        "tolerance": TOLERANCE,
        "divergence": "Hutchinson, one probe of +1 and -1 an image",
        "dequantisation": "uniform",
        "labels": "of the images" if _conditional(model, samples) else "none",
        "seed": seed,
    }


def _resume(partial: Path, head: dict[str, Any]) -> dict[int, Bits]:
    """What was measured of the same by an earlier, killed call; begins the file anew if nothing."""
    try:
        lines = partial.read_text(encoding="utf-8").splitlines() if partial.exists() else []
    except (OSError, UnicodeDecodeError):
        lines = []
    rows: dict[int, Bits] = {}
    if lines and lines[0] == json.dumps(head):
        for line in lines[1:]:
            try:
                row = Bits(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the line that a kill cut short
            rows[row.image] = row
    kept = "".join(json.dumps(row._asdict()) + "\n" for row in rows.values())
    write_atomic(partial, (json.dumps(head) + "\n" + kept).encode())
    return rows


def _print(result: dict[str, Any]) -> None:
    error = result["standard_error"]
    spread = "" if error is None else f" +- {error:.4f} (standard error)"
    print(
        f"{result['bits_per_dimension']:.4f} bits per dimension{spread}, {result['count']} images, "
        f"labels: {result['labels']}, up to {result['evaluations']} evaluations an image"
    )
