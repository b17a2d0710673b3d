"""Tensors of which each process holds a part: made of whole ones, and whole again."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process: all of it, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that all processes have whole, in the parts in which ``like`` lies; always a copy.

    Nothing is sent: each process takes its rows of its own.
    """
    if not isinstance(like, DTensor):
        return whole.to(like.device, copy=True)
    # To the device of the mesh, which need not be where the parts rest.
    mesh, placements = like.device_mesh, like.placements
    sharded: DTensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    local = sharded.to_local().to(like.to_local().device, copy=True)
    return DTensor.from_local(local, mesh, placements, shape=like.shape, stride=like.stride())


@torch.no_grad()
def fill_parts(parts: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Copy tensors that all processes have whole into those of their names, one after the other."""
    for name, tensor in parts.items():
        own_part(tensor).copy_(own_part(part_like(whole[name], tensor)))


class Whole(Mapping[str, Tensor]):
    """Tensors put together from their parts when they are asked for.

    All processes must ask for the same ones in the same order, as `pass_through` does for those
    that have no use for them.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = parts

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.parts[name]
        return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def pass_through(self) -> None:
        """Take part in putting together every tensor, and keep none."""
        for _ in self.values():
            pass
