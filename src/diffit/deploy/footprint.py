"""What a model costs: bits a weight, memory at its peak, images a second."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from diffit.deploy.probe import Noisy, answer
from diffit.distributed import pick_device
from diffit.drawing import threads
from diffit.errors import CheckpointError
from diffit.model import Model, ModelConfig, build_model, empty_model, fill
from diffit.networks.dit import DiTConfig
from diffit.nn.linears import DenseConfig
from diffit.nn.swap import linears_in

ROUNDS = 3
"""Evaluations of each model that are timed, after one that is not; the median counts."""


def bytes_of(network: nn.Module) -> int:
    """Bytes of all weights and tables, as they are in memory."""
    return sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])


def bits_a_weight(network: nn.Module, changed: Mapping[str, nn.Module]) -> float:
    """Bits of each weight of the linear layers in the blocks, biases left out.

    ``changed`` are layers that take the places of those of their names.
    """
    layers = linears_in(network)
    bits = sum(8 * _weight_bytes(changed.get(name, layer)) for name, layer in layers.items())
    return bits / max(1, sum(layer.weight.numel() for layer in layers.values()))


def _weight_bytes(layer: nn.Module) -> int:
    """Bytes of a layer's file but for the bias."""
    return sum(tensor.nbytes for name, tensor in layer.state_dict().items() if name != "bias")


def baseline(model: Model, dtype: torch.dtype) -> Model:
    """The dense model of the same shape in another precision; masters of ternary layers as they
    are."""
    dense = empty_model(model.config.model_copy(update={"linear": DenseConfig()}))
    wanted = dense.network.state_dict().keys()
    tensors = ((key, t) for key, t in model.network.state_dict().items() if key in wanted)
    fill(dense, tensors, device=model.device, dtype=dtype)
    return dense


def pace(models: Mapping[str, Model], given: Noisy) -> dict[str, float]:
    """Images a second of one evaluation of each denoiser, measured in turns.

    On the CPU one thread computes, and the clock is its processor time, which neighbours do not
    touch.
    """
    device = given.x.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad(), threads(1):
        for turn in range(ROUNDS + 1):
            for name, model in models.items():
                started = clock()
                answer(model, given)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:
                    seconds[name].append(clock() - started)
    return {
        name: len(given.x) / max(statistics.median(each), 1e-9) for name, each in seconds.items()
    }


def peak_memory(
    checkpoint: str | Path,
    *,
    images: int,
    weights: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
) -> int | None:
    """Bytes at the peak of loading a model and evaluating it once on so many images.

    A fresh process does both, and what it had before does not count; on a GPU the GPU's memory
    does. None where the system does not tell.
    ``dtype`` is the precision of the network, such as ``"bfloat16"``.
    """
    job = json.dumps([str(checkpoint), weights, images, dtype, device])
    code = "import sys; from diffit.deploy.footprint import report; report(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, job], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(f"{checkpoint} could not be run in a process of its own: {last}")
    return int(done.stdout.splitlines()[-1]) or None


def report(job: str) -> None:
    """What the process of `peak_memory` does: print its memory."""
    import warnings

    from diffit.checkpoint import load

    checkpoint, weights, images, dtype, name = json.loads(job)
    device = pick_device(name)
    warnings.simplefilter("ignore")
    _warm_up(device)
    before = _used(device)
    precision = None if dtype is None else getattr(torch, dtype)
    model = load(checkpoint, weights=weights, device=device, dtype=precision)
    _evaluate(model, images)
    peak = _peak(device)
    print(peak and peak - before)


def _warm_up(device: torch.device) -> None:
    """Load what libraries load when they are first used, with a network of next to nothing."""
    config = ModelConfig(network=DiTConfig(size=8, width=16, depth=1, heads=1, classes=1))
    tiny = empty_model(config)
    fill(tiny, build_model(config).network.state_dict().items(), device=device)
    _evaluate(tiny, 1)


def _evaluate(model: Model, images: int) -> None:
    x = torch.zeros(images, *model.shape, device=model.device)
    label = torch.zeros(images, dtype=torch.int64, device=model.device) if model.classes else None
    sigma = model.formulation.training_sigma(torch.tensor(0.5, dtype=torch.float64))
    with torch.no_grad():
        answer(model, Noisy(x, sigma, label))


def _used(device: torch.device) -> int:
    """Bytes in use: of the GPU, or of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    """As `_used`, at the most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(key: str) -> int:
    """A line of Linux' status of this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)
