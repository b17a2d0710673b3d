"""Other linear layers in the place of those in a network's blocks."""

from collections.abc import Callable
from typing import Any

from torch import nn


def linears_in(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers in the network's blocks, by their dotted name in the network."""
    blocks: Any = network.blocks  # of the contract `Network`
    inside = {layer for block in blocks() for layer in block.modules()}
    return {
        name: layer
        for name, layer in network.named_modules(remove_duplicate=False)
        if isinstance(layer, nn.Linear) and layer in inside
    }


def swap_linears_(
    network: nn.Module,
    make: Callable[[nn.Linear], nn.Module],
    where: Callable[[str], bool] = lambda name: True,
) -> list[str]:
    """Replace linear layers in the blocks of a network, in place.

    Embeddings, the first and the last layer lie outside the blocks and stay. Layers that share
    their weights share what replaces them.

    Args:
        network: with ``blocks()``; its tensors may be on the meta device.
        make: the layer that takes another one's place.
        where: of a layer's dotted name, such as `column.0.attention.qkv`: whether to replace it.

    Returns:
        The names of the replaced layers, in the order of the network.
    """
    chosen = {name: layer for name, layer in linears_in(network).items() if where(name)}
    made = {layer: make(layer) for layer in chosen.values()}
    for name, layer in chosen.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, made[layer])
    return list(chosen)
