"""Many processes, one network: each computes a part of the batch, and all take the same step.

PyTorch's DistributedDataParallel adds up the gradients while they are computed
(arXiv:2006.15704); nothing of it is left in the network or in the names of its parameters.
"""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffit.distributed import world
from diffit.training.inputs import Inputs

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
    """Losses whose backward pass averages the gradients over all processes; None alone.

    Args:
        network: of this process; takes over the weights of the first one.
        losses: computes with ``network``.
        unused: some parameters take no part in the losses.
    """
    if world() == 1:
        return None
    module = _Lossful(network, losses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions have another name for it
        # Buffers are constants. Without device_ids the inputs stay where they are: noise levels
        # belong on the CPU.
        return DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=unused
        )


def synchronised(
    together: Losses | None, network: nn.Module, *, now: bool
) -> contextlib.AbstractContextManager[Any]:
    """In here a backward pass averages the gradients over all processes if it is ``now`` time.

    Otherwise they are added to those that are there, and no process waits for another.
    """
    if isinstance(together, DistributedDataParallel) and not now:
        return together.no_sync()
    return contextlib.nullcontext()
