"""Checkpoints of other codes, made of recorded weights or of random ones on the spot."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from conftest import FIXTURES
from diffit.convert import to_reference
from diffit.networks import DiTConfig, LatentDiffiTConfig, build_network

RECORDED = {"diffit": "diffit_latent_tiny", "dit": "dit_tiny", "terdit": "terdit_tiny"}
V2 = {"position": "rotary", "qk_norm": True, "mlp": "swiglu", "norm": "rms"}
SHAPE = {"size": 8, "width": 48, "depth": 2, "heads": 4, "classes": 5, "learned_variance": True}


def recorded(family: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Everything in a fixture, its state dict, and its metadata."""
    with safe_open(FIXTURES / f"{RECORDED[family]}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = {key: file.metadata()[key] for key in ("constructor", "sampling", "cfg")}
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return tensors, state, {key: json.loads(text) for key, text in meta.items()}


def randomised(config: Any, seed: int = 0) -> Any:
    """A network none of whose weights is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(config).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def v2_network(**changes: Any) -> Any:
    return randomised(LatentDiffiTConfig(**{**SHAPE, **V2, **changes}))


def dit_network(**changes: Any) -> Any:
    return randomised(DiTConfig(**{**SHAPE, **changes}))


def write(path: Path, state: dict[str, Tensor]) -> Path:
    """A state dict as a safetensors file, or by its suffix as one of `torch.save`."""
    whole = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(whole, path)
    else:
        torch.save(whole, path)
    return path


def write_network(path: Path, network: Any, family: str | None = None) -> Path:
    """A network of ours under the names of the code of its family."""
    return write(path, to_reference(network, family)[1])
