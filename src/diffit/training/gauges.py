"""Gauges of a run: how busy the device is, what it waits for, its memory, its attention.

All processes read them at the same moment; a line has one figure for all of them.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffit.distributed import gather, world
from diffit.model import Model
from diffit.networks import NetworkConfig
from diffit.networks.count import training_flops
from diffit.nn.attention import largest_logits
from diffit.training.inputs import Inputs
from diffit.training.settings import RunConfig
from diffit.training.state import State
from diffit.training.step import Objective, Precision

PROBED = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
"""Places in the training law of the noise levels at which attention is looked at."""
PRODUCTS = 5
"""Products that the ceiling of a device is the fastest of."""


class Gauges:
    """Reads what is beside the loss in a line of metrics.

    Args:
        config: of the run.
        state: where it stands, now and later.
    """

    def __init__(self, config: RunConfig, state: State) -> None:
        self.config, self.state = config, state
        self.before = (state.images, state.seconds)
        self.waited = 0.0

    def next(self, inputs: Iterator[Inputs]) -> Inputs:
        """The next batch; the time until it is there counts as waiting for data."""
        started = time.monotonic()
        found = next(inputs)
        self.waited += time.monotonic() - started
        return found

    def read(self, objective: Objective, batch: Inputs) -> dict[str, Any]:
        """Figures since the last call, of all processes; ``batch`` is this one's last.

        Returns:
            `attention_logit`, the largest of the first image of the batch at four noise levels, if
            any attention was seen; `ema_distance`, how far the chosen average is from the weights
            as a share of their norm, if there is one; `utilisation`, FLOP/s as a share of what the
            device reaches in matrix products; `data_wait`, the share of the time; `memory` in bytes
            of the process with the most: resident on the CPU, else allocated at the peak.
        """
        images, seconds = self.state.images, self.state.seconds
        took = max(seconds - self.before[1], 1e-9)
        own = [self.waited / took, used_memory(self.state.model.device)]
        rows = gather([*own, *_distance(self.state, self.config.train.ema.chosen)])
        logit = largest_logit(objective, batch)
        figures = {
            "attention_logit": logit,
            "ema_distance": _ratio(rows),
            "utilisation": self._utilisation((images - self.before[0]) / took),
            "data_wait": round(min(1.0, max(row[0] for row in rows)), 4),
            "memory": max(row[1] for row in rows),
        }
        self.before, self.waited = (images, seconds), 0.0
        return {name: figure for name, figure in figures.items() if figure is not None}

    def _utilisation(self, speed: float) -> float:
        train, device = self.config.train, self.state.model.device
        flops = _flops(self.config.model.network)
        ceiling = matrix_ceiling(str(device), train.precision, train.tf32, torch.get_num_threads())
        return round(speed * flops / (ceiling * world()), 4)


def largest_logit(objective: Objective, batch: Inputs) -> float | None:
    """The largest attention logit of the first image of a batch, at four noise levels."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), largest_logits() as found:
        replace(objective, teacher=None).losses(at_levels(batch, objective.model))
    return max(map(float, found)) if found else None


def at_levels(batch: Inputs, model: Model) -> Inputs:
    """The first image of a batch, once for each noise level that is looked at."""
    position = torch.tensor(PROBED, dtype=torch.float64)
    first = batch.part(0, 1)

    def repeated(x: Tensor | None) -> Any:
        return None if x is None else x.expand(len(PROBED), *x.shape[1:])

    return Inputs(*map(repeated, first))._replace(
        position=position, sigma=model.formulation.training_sigma(position)
    )


def used_memory(device: torch.device) -> int:
    """Bytes: allocated on a GPU at the peak since the last call, else resident of this process."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resident()


def resident() -> int:
    """Bytes of this process in memory now; at its peak, where nothing else is told."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * _page()
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _page() -> int:
    import resource

    return resource.getpagesize()


@lru_cache(maxsize=16)
def matrix_ceiling(device: str, precision: Precision, tf32: bool, threads: int) -> float:
    """FLOP/s of the fastest of some square matrix products, measured once.

    Args:
        device: where.
        precision: fp32, or the one of automatic mixed precision.
        tf32: whether TF32 products are allowed, which the caller has set.
        threads: of PyTorch now; like ``tf32`` it tells one measurement from another.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side = 768 if device == "cpu" else 8192 if device.startswith("cuda") else 4096
    own = torch.Generator(device).manual_seed(0)  # leaves the global one as it is
    a = torch.randn(side, side, device=device, generator=own).to(dtype)
    times = []
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return float(2 * side**3 / min(times))


@lru_cache(maxsize=16)
def _flops(network: NetworkConfig) -> int:
    return training_flops(network)


def _distance(state: State, name: str) -> tuple[float, float]:
    """Squares of the difference of an average to the weights, and of the weights, in this process.

    A sharded network has a part of them here; zeros without the average.
    """
    kept: Mapping[str, Tensor] = state.averages.tensors.get(name, {})
    difference = norm = 0.0
    current = state.model.network.state_dict()
    for key, average in kept.items():
        if average.is_floating_point():
            own, other = _own(current[key]).float(), _own(average).float()
            difference += float((own - other).square().sum())
            norm += float(own.square().sum())
    return difference, norm


def _own(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _ratio(rows: list[list[float]]) -> float | None:
    norm = math.fsum(row[3] for row in rows)
    return math.sqrt(math.fsum(row[2] for row in rows) / norm) if norm else None
