"""A model outside of Python: D(x, sigma, label), scalings included, for ONNX runtimes or PyTorch's.

A folder holds `denoiser.onnx` (or `.pt2`), of latent models `decoder.onnx`, `model.json` with what
a sampler must know, and `sample.py`, a sampler that needs numpy and onnxruntime alone. Nothing is
written before the exported model has given what the model gives.
"""

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffit import __version__, draws
from diffit.codecs import Autoencoder
from diffit.errors import UsageError
from diffit.fetch import file_sha256
from diffit.generation import SamplingConfig
from diffit.model import Model
from diffit.sealed import appearing

Kind = Literal["onnx", "torch"]
Precision = Literal["fp32", "fp16"]

SUFFIXES: Mapping[Kind, str] = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest difference to PyTorch in float32, relative to the largest value."""
BATCHES = (1, 3)
"""Numbers of images that the comparison asks for; neither is that of the export."""
LAYERS = ("dense", "ternary")
"""Kinds of linear layers that are made of operations that others know."""
SAMPLER = Path(__file__).with_name("onnx_sampler.py")
FORMAT = 1
MAX_DECODED = 63
"""From 64 images on, the decoders of diffusers copy their tensors: another graph."""
MAX_INSIDE = 1_500_000_000
"""Bytes of weights that an ONNX file may hold itself: protobuf ends at 2 GiB."""


class Part(NamedTuple):
    """A function that leaves Python.

    Attributes:
        module: what is exported.
        inputs: name -> example of two images.
        output: name of what comes out.
        most: images at once.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str
    most: int


class Exported(NamedTuple):
    """What was made.

    Attributes:
        files: name -> bytes.
        errors: part -> largest difference to PyTorch, relative to the largest value.
    """

    files: dict[str, int]
    errors: dict[str, float]


class _Decoder(nn.Module):
    """Latents of the model's space to pixels, about [-1, 1]."""

    def __init__(self, codec: Autoencoder) -> None:
        super().__init__()
        self.codec = codec
        self.network = codec.module(torch.device("cpu"))

    def forward(self, latent: Tensor) -> Tensor:
        """(B, c, h, w) to (B, 3, H, W)."""
        network: Any = self.network
        pixels: Tensor = network.decode(self.codec.from_model(latent)).sample
        return pixels


def export(
    model: Model,
    folder: Path,
    *,
    kind: Kind = "onnx",
    precision: Precision = "fp32",
    settings: SamplingConfig | None = None,
    tolerance: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model for others to run.

    Args:
        model: in float32, on the CPU.
        folder: new folder.
        kind: onnx, or torch for `torch.export.load`.
        precision: of the network; inputs and outputs are float32 in either.
        settings: noise levels and guidance that are recommended; by default the model's own.
        tolerance: by default that of `TOLERANCES`.
        tell: told what is being done.

    Raises:
        UsageError: layers that only this library can run; a package is missing; or the exported
            model differs by more than the tolerance. Nothing is written then.
    """
    refuse(model, kind)
    chosen = settings or model.sampling or SamplingConfig()
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    errors: dict[str, float] = {}
    with appearing(folder) as part:
        for name, piece in parts_of(model, chosen).items():
            tell(f"exporting the {name}")
            file = part / f"{name}{SUFFIXES[kind]}"
            probes = _probes(piece, model, chosen)
            # Computed before the network is given another precision.
            wanted = [_run_module(piece, probe) for probe in probes]
            if precision == "fp16":
                piece = piece._replace(module=deepcopy(piece.module).to(torch.float16))
            _write(piece, file, kind)
            tell(f"comparing the {name} with PyTorch")
            run = _open(file, kind)
            pairs = zip(probes, wanted, strict=True)
            errors[name] = max(_difference(run(probe), answer) for probe, answer in pairs)
            if not errors[name] <= limit:
                raise UsageError(
                    f"the exported {name} differs from PyTorch by {errors[name]:.1e} of its "
                    f"largest value, and {limit:.0e} is allowed; nothing was written"
                )
        if kind == "onnx":
            shutil.copyfile(SAMPLER, part / "sample.py")
        files = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
        about = _about(model, chosen, errors) | {
            "precision": precision,
            "files": {name: file_sha256(part / name) for name in files},
        }
        (part / "model.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Exported(files, errors)


def refuse(model: Model, kind: Kind) -> None:
    """UsageError unless the model can be exported so, on this machine."""
    layers = model.config.linear.name
    if layers not in LAYERS:
        raise UsageError(
            f"{layers} layers run on kernels of this library, which no other runtime has; export "
            "the model that they were made of"
        )
    if kind == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            try:
                __import__(package)
            except ImportError:
                raise UsageError(
                    f"ONNX needs the package {package}: pip install 'diffit-torch[onnx]'"
                ) from None


def parts_of(model: Model, settings: SamplingConfig) -> dict[str, Part]:
    """The denoiser, and of latent models the decoder."""
    x = torch.zeros(2, *model.shape)
    inputs = {"x": x, "sigma": settings.sigmas(model.formulation)[:1].expand(2).clone()}
    if model.classes:
        inputs["label"] = torch.zeros(2, dtype=torch.int64)
    parts = {"denoiser": Part(model.denoiser, inputs, "clean", 4096)}
    if isinstance(model.codec, Autoencoder):
        parts["decoder"] = Part(_Decoder(model.codec), {"latent": x}, "pixels", MAX_DECODED)
    return parts


def _write(part: Part, file: Path, kind: Kind) -> None:
    batch = torch.export.Dim("batch", min=1, max=part.most)
    shapes = {name: {0: batch} for name in part.inputs}
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            part.module, (), kwargs=part.inputs, dynamic_shapes=shapes, strict=False
        )
        if kind == "torch":
            program.example_inputs = None  # they would be kept as a pickle
            torch.export.save(program, file)
            return
        torch.onnx.export(
            program,
            kwargs=part.inputs,
            f=file,
            input_names=list(part.inputs),
            output_names=[part.output],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
            external_data=_bytes(part.module) > MAX_INSIDE,
        )


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


Run = Callable[[Mapping[str, Tensor]], Tensor]


def _open(file: Path, kind: Kind) -> Run:
    """The exported function."""
    if kind == "torch":
        module = torch.export.load(file).module()
        return lambda inputs: module(**inputs)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        feed = {name: value.numpy() for name, value in inputs.items()}
        return torch.from_numpy(np.asarray(session.run(None, feed)[0]))

    return run


def _probes(part: Part, model: Model, settings: SamplingConfig) -> list[dict[str, Tensor]]:
    """Inputs of several batch sizes at noise levels from the highest to the lowest."""
    sigmas = settings.sigmas(model.formulation)
    sigmas = sigmas[sigmas > 0]
    probes = []
    for batch in BATCHES:
        for sigma in sigmas[[0, len(sigmas) // 2, -1]]:
            noise = draws.normal(0, range(batch), "export", model.shape)
            std = float(model.formulation.prior_std(sigma))
            label = torch.tensor([model.classes, 0, model.classes - 1])[:batch]
            given = {"x": std * noise, "sigma": sigma.expand(batch).clone(), "label": label}
            given["latent"] = noise
            probes.append({name: given[name] for name in part.inputs})
    return probes


@torch.no_grad()
def _run_module(part: Part, inputs: Mapping[str, Tensor]) -> Tensor:
    answer: Tensor = part.module(**inputs)
    return answer


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or not torch.isfinite(found).all():
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def _about(model: Model, settings: SamplingConfig, errors: dict[str, float]) -> dict[str, Any]:
    """What a sampler must know of the model."""
    sigmas = settings.sigmas(model.formulation)
    decoder = "decoder.onnx" if "decoder" in errors else None
    return {
        "format": FORMAT,
        "diffit": __version__,
        "denoiser": "denoiser.onnx",
        "decoder": decoder,
        "shape": list(model.shape),
        "classes": model.classes,
        "class_names": list(model.config.class_names),
        "sigmas": sigmas.tolist(),
        "prior_std": float(model.formulation.prior_std(sigmas[0])),
        "guidance": settings.guidance,
        "rounding": getattr(model.config.codec, "rounding", "nearest"),
        "difference_to_pytorch": errors,
        "provenance": model.provenance,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch says of its own insides while it exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
