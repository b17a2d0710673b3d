"""Many processes, one network: each computes a part of the batch, and all take the same step.

Either each has all weights, and PyTorch's DistributedDataParallel averages the gradients while
they are computed (arXiv:2006.15704); or each keeps its rows of every weight, gradient, moment and
average, and FSDP2's `fully_shard` puts a block together when it is needed (arXiv:2304.11277).
Neither changes the names of the parameters.
"""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel

from diffit.config import Settings
from diffit.distributed import place, world
from diffit.training.inputs import Inputs

Precision = Literal["fp32", "bf16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ParallelConfig(Settings):
    """How several processes share the work; alone, a process does without all of it."""

    kind: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each has all weights. fsdp: each keeps a part of them, of their gradients, moments and
    averages, which takes less memory and more traffic."""
    shard: Literal["full", "hybrid"] = "full"
    """Of fsdp: all processes share one copy of the weights, or those of each machine do."""
    offload: bool = False
    """Of fsdp, with GPUs: parts rest in the memory of the CPU, where the optimiser runs too."""
    gather: Precision = "fp32"
    """Of fsdp: precision in which the blocks' weights are sent; bf16 goes with train.precision bf16
    and rounds what mixed precision leaves exact, such as the scales of norms."""
    reduce: Precision = "fp32"
    """Of fsdp: precision in which gradients are added up."""
    write: Literal["pieces", "whole"] = "pieces"
    """Of fsdp: each process writes its pieces of a checkpoint while training goes on, or the first
    one puts all together and writes. The last checkpoint of a run is whole either way."""

    @property
    def in_pieces(self) -> bool:
        """Whether checkpoints are written in pieces, by all processes at once."""
        return world() > 1 and self.kind == "fsdp" and self.write == "pieces"


Losses = Callable[[Inputs], Tensor]
"""A batch to the (B,) loss of each image."""


class _Lossful(nn.Module):
    """A network and what its losses are as one module, whose forward pass gives the losses.

    However often a loss calls the network, DDP sees one forward pass.
    """

    def __init__(self, network: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.network = network
        self.losses = losses

    def forward(self, inputs: Inputs) -> Tensor:
        """The (B,) loss of each image."""
        return self.losses(inputs)


def replicate(network: nn.Module, losses: Losses, *, unused: bool = False) -> Losses | None:
    """Losses whose backward pass averages the gradients over all processes.

    None alone, and if the network is sharded, whose own losses do so.

    Args:
        network: of this process; takes over the weights of the first one.
        losses: computes with ``network``.
        unused: some parameters take no part in the losses.
    """
    if world() == 1 or is_sharded(network):
        return None
    module = _Lossful(network, losses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions have another name for it
        # Buffers are constants. Without device_ids the inputs stay where they are: noise levels
        # belong on the CPU.
        return DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=unused
        )


def shard(network: nn.Module, config: ParallelConfig, device: torch.device) -> None:
    """Leave this process its part of every weight; FSDP2 puts them together, block by block.

    Nothing happens alone. The parameters become sharded ones: the optimiser is made afterwards.

    Args:
        network: with its weights, the same in all processes, or on the meta device.
        config: how.
        device: where this process computes.
    """
    if world() == 1 or config.kind != "fsdp":
        return
    mesh = init_device_mesh(device.type, _mesh_shape(config), mesh_dim_names=_mesh_names(config))
    offload = CPUOffloadPolicy() if config.offload else OffloadPolicy()
    # Inputs stay as they are: autocast decides what is computed in which precision.
    exact = MixedPrecisionPolicy(reduce_dtype=DTYPES[config.reduce], cast_forward_inputs=False)
    low = MixedPrecisionPolicy(
        param_dtype=DTYPES[config.gather],
        reduce_dtype=DTYPES[config.reduce],
        cast_forward_inputs=False,
    )
    blocks: Any = network.blocks  # of the contract `Network`
    for block in blocks():
        fully_shard(block, mesh=mesh, mp_policy=low, offload_policy=offload)
    fully_shard(network, mesh=mesh, mp_policy=exact, offload_policy=offload)
    if hasattr(network, "pyramid"):
        register_fsdp_forward_method(network, "pyramid")
    network.computes_on = device  # type: ignore[assignment]


def _mesh_shape(config: ParallelConfig) -> tuple[int, ...]:
    """Processes along each way: (all,), or (machines, those of a machine)."""
    local = place().local_world
    return (world(),) if config.shard == "full" else (world() // local, local)


def _mesh_names(config: ParallelConfig) -> tuple[str, ...]:
    return ("shard",) if config.shard == "full" else ("copy", "shard")


def is_sharded(network: nn.Module) -> bool:
    """Whether this process has only a part of the weights."""
    return isinstance(network, FSDPModule)


def synchronised(
    together: Losses | None, network: nn.Module, *, now: bool
) -> contextlib.AbstractContextManager[Any]:
    """In here a backward pass averages the gradients over all processes if it is ``now`` time.

    Otherwise they are added to those that are there, and no process waits for another.
    """
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
    if isinstance(together, DistributedDataParallel) and not now:
        return together.no_sync()
    return contextlib.nullcontext()
