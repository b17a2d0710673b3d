"""What a run will take, before it is begun: memory, time, room on the disk.

Memory is found by taking a step on tensors without content (torch's fake tensors), whose sizes are
added up as they come and go. It takes no memory, and no more than the step's Python.
"""

import math
import time
import weakref
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffit.model import Model, empty_model
from diffit.networks.count import count_parameters, training_flops
from diffit.training.ema import Averages
from diffit.training.gauges import matrix_ceiling
from diffit.training.inputs import Inputs, draw_seen
from diffit.training.journal import Meter
from diffit.training.optim import build_optimizer
from diffit.training.prepare import build_objective
from diffit.training.settings import RunConfig
from diffit.training.state import State, fresh_state
from diffit.training.step import Objective, arithmetic

PROBE_STEPS = 10
PROBE_SECONDS = 60.0
"""The probe ends after either."""

Kind = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Attributes:
        weights: parameters and tables.
        gradients: of the parameters.
        moments: of the optimiser.
        averages: of the weights.
        activations: what else there is at the peak: kept for the backward pass, in work, inputs.
        exchange: what several processes need to add up gradients or to put blocks together.
        block: weights of the largest block, which count to ``exchange`` when they are sharded.
    """

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: int
    exchange: int = 0
    block: int = 0

    @property
    def total(self) -> int:
        """At the peak of a step, without Python and its libraries."""
        kept = self.weights + self.gradients + self.moments + self.averages
        return kept + self.activations + self.exchange

    def shared(self, kind: Kind, processes: int) -> "Memory":
        """That of each of several processes; activations are of its own part of the batch."""
        if processes == 1:
            return self
        if kind == "ddp":  # buckets of the gradients, beside them
            return replace(self, exchange=self.gradients)
        names = ("weights", "gradients", "moments", "averages")
        parts = {name: math.ceil(getattr(self, name) / processes) for name in names}
        # A block is computed while the next one arrives, or its gradients leave.
        return replace(self, **parts, exchange=2 * self.block)


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that are made while it is on, and notes the peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # Only refusals and rare cases ask for values: the answer is that of the usual case.
            return args[0].dtype.is_floating_point and 1.0
        if func is torch.ops.aten.nonzero.default:
            return torch.empty(0, args[0].ndim, dtype=torch.int64, device=args[0].device)
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def estimate_memory(config: RunConfig, device: torch.device, *, images: int) -> Memory:
    """Bytes that a step takes in one process that is alone.

    Args:
        config: of the run.
        device: its kind decides which form of attention is used.
        images: of the batch that the process has.
    """
    model = empty_model(config.model)
    model.network.requires_grad_()
    blocks: Any = model.network.blocks  # of the contract `Network`
    block = max(_bytes(block.parameters()) for block in blocks())
    with FakeTensorMode(allow_non_fake_inputs=True), Sizes() as sizes:
        model.network.to_empty(device=device)
        weights = sizes.now
        state = _state(model, config)
        averages = sizes.now - weights
        objective = replace(build_objective(state, config), together=None)
        model.network.activation_checkpointing = config.train.activation_checkpointing  # type: ignore[assignment]
        for _ in range(2):  # in the first step the moments are not there yet
            sizes.peak = sizes.now
            moments = _step(state, objective, config, images)
    kept = [p for p in model.network.parameters() if p.grad is not None]
    gradients = _bytes(kept)
    rest = weights + averages + gradients + moments
    return Memory(weights, gradients, moments, averages, sizes.peak - rest, block=block)


def _state(model: Model, config: RunConfig) -> State:
    train = config.train
    optimizer = build_optimizer(
        model.network, name=train.optimizer, rate=train.lr, betas=train.betas,
        epsilon=train.epsilon, weight_decay=train.weight_decay, decayed=train.weight_decay_on,
    )  # fmt: skip
    return State(model, optimizer, Averages(model.network, train.ema), None, Meter())


def _step(state: State, objective: Objective, config: RunConfig, images: int) -> int:
    """Learn from one batch without content; bytes of the moments."""
    inputs, train = made_up(state.model, images), config.train
    micro = min(train.micro_batch or images, images)
    for p in state.model.network.parameters():
        p.grad = None
    for first in range(0, images, micro)[:2]:  # the others are like the second
        loss = objective.losses(inputs.part(first, micro)).sum()
        torch.autograd.backward(loss)
        del loss
    state.optimizer.step()
    state.averages.update(batch=images, after=images)
    moments = (v for kept in state.optimizer.state.values() for v in kept.values())
    return _bytes(v for v in moments if isinstance(v, Tensor))


def made_up(model: Model, images: int) -> Inputs:
    """Inputs of the right shapes for a step whose result nobody wants."""
    device, shape = model.device, (images, *model.shape)
    position = torch.linspace(0.05, 0.95, images, dtype=torch.float64)
    label = torch.zeros(images, dtype=torch.int64, device=device) if model.classes else None
    augment = torch.zeros(images, 9, device=device)
    told = getattr(model.config.network, "condition_channels", 0)
    seen = draw_seen(model.network, 0, list(range(images)), device)
    return _complete(
        {
            "clean": torch.randn(shape, device=device),
            "noise": torch.randn(shape, device=device),
            "sigma": model.formulation.training_sigma(position),
            "position": position,
            "label": label,
            "augment": augment if getattr(model.config.network, "augment", False) else None,
            "keys": torch.zeros(images, dtype=torch.int64, device=device),
            "number": torch.arange(images),
            "seen": seen,
            "image": torch.zeros(images, told, *shape[2:], device=device) if told else None,
        }
    )


def _complete(found: dict[str, Tensor | None]) -> Inputs:
    return Inputs(**{name: found.get(name) for name in Inputs._fields})  # type: ignore[arg-type]


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Pace:
    """How fast a step is.

    Attributes:
        images_per_second: of one process.
        steps: that were measured.
        utilisation: its FLOP/s as a share of the ceiling.
        ceiling: FLOP/s of matrix products on the device.
    """

    images_per_second: float
    steps: int
    utilisation: float
    ceiling: float


def probe(
    config: RunConfig, device: torch.device, *, images: int, steps: int = PROBE_STEPS
) -> Pace:
    """Take some steps on made-up images, and leave nothing behind.

    Reading and decoding of data are not in it. A slow device takes fewer steps, at least one.
    """
    train = config.train
    with arithmetic(device, tf32=train.tf32, threads=train.threads):
        state = fresh_state(config, device)
        state.model.network.activation_checkpointing = train.activation_checkpointing  # type: ignore[assignment]
        objective = replace(build_objective(state, config), together=None)
        inputs = made_up(state.model, images)
        ceiling = matrix_ceiling(str(device), train.precision, train.tf32, torch.get_num_threads())
        times: list[float] = []
        begun = time.monotonic()
        # One more before them, in which libraries are loaded and caches filled.
        while len(times) < 2 or (len(times) <= steps and time.monotonic() - begun < PROBE_SECONDS):
            started = time.perf_counter()
            objective.gradients(inputs, micro_batch=train.micro_batch)
            state.optimizer.step()
            state.averages.update(batch=images, after=images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
    counted = sorted(times[1:])
    speed = images / counted[len(counted) // 2]
    flops = training_flops(config.model.network)
    return Pace(speed, len(counted), speed * flops / ceiling, ceiling)


@dataclass(frozen=True)
class Disk:
    """Bytes that a run leaves.

    Attributes:
        checkpoint: one of them.
        most: all that are kept at the end, and the one that is written before one is removed.
    """

    checkpoint: int
    most: int


def estimate_disk(config: RunConfig, memory: Memory) -> Disk:
    """Room for the checkpoints of a whole run; pictures and metrics are small beside them."""
    train = config.train
    one = memory.weights + memory.moments + memory.averages
    for_ever = train.images // train.keep_every if train.keep_every else 0
    ends = math.ceil(train.images / train.checkpoint_every)
    most = one * (min(train.keep_last, ends) + min(for_ever, ends) + 1)
    if train.ema.power:
        every = train.ema.power_every or train.checkpoint_every
        most += len(train.ema.power) * memory.weights * (train.images // every)
    return Disk(one, most)


def parameters_of(config: RunConfig) -> int:
    """Trained numbers of a run's network."""
    return count_parameters(empty_model(config.model).network)
