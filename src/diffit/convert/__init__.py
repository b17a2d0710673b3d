"""Published weights to networks of this library, and back: one file for each family."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffit.config import nearest
from diffit.convert import diffit, dimr, dit, mdt, uvit
from diffit.convert.tensors import as_shape, check_tensors
from diffit.errors import CheckpointError
from diffit.networks import Network, build_network

FAMILIES: dict[str, ModuleType] = {
    "diffit": diffit,
    "dit": dit,
    "uvit": uvit,
    "mdt": mdt,
    "dimr": dimr,
}
"""Each has `NETWORK`, `config`, `arguments`, `names`, `shapes` and `derived`."""


def from_reference(
    family: str, state_dict: Mapping[str, Tensor], args: Mapping[str, Any]
) -> Network:
    """A network of this library with the weights of a reference implementation.

    Args:
        family: ``"diffit"`` (NVlabs/DiffiT, latent), ``"dit"`` (facebookresearch/DiT), ``"uvit"``
            (baofff/U-ViT), ``"mdt"`` (sail-sg/MDT, MDTv2) or ``"dimr"`` (qihao067/DiMR).
        state_dict: the reference's tensors under the reference's names.
        args: arguments of the reference's constructor; those left out have its defaults.

    Returns:
        The network in float32 and eval mode, on the CPU. Called as network(x, t, y) with the
        reference's own time it returns the reference's raw output.

    Raises:
        CheckpointError: a tensor is missing, unknown or of the wrong shape, or an argument is.
    """
    if family not in FAMILIES:
        raise CheckpointError(f"there is no family {family!r}; {nearest(family, list(FAMILIES))}")
    source = FAMILIES[family]
    config = source.config(args)
    with torch.device("meta"):  # the weights come from the state dict: make none before
        network = build_network(config)
    empty = network.state_dict()
    names = source.names(config)
    shapes = {names[ours]: source.shapes(config).get(ours, t.shape) for ours, t in empty.items()}
    check_tensors(state_dict, shapes, derived=source.derived(config))
    ours = {
        name: as_shape(state_dict[names[name]].detach().to("cpu", torch.float32, copy=True), t)
        for name, t in empty.items()
    }
    network.load_state_dict(ours, assign=True)
    return cast(Network, network.eval())


def to_reference(network: Network) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The inverse: family, state dict under the reference's names, constructor arguments.

    ValueError for a network with settings that the reference does not know.
    """
    config = network.config
    family = next((f for f, source in FAMILIES.items() if config.name == source.NETWORK), None)
    if family is None:
        raise ValueError(f"no published code has a network like {config.name!r}")
    source = FAMILIES[family]
    args = source.arguments(config)
    names, shapes = source.names(config), source.shapes(config)
    state = cast(nn.Module, network).state_dict()
    theirs = {
        names[ours]: as_shape(t.detach(), torch.empty(shapes.get(ours, t.shape), device="meta"))
        for ours, t in state.items()
    }
    return family, theirs | source.derived(config), args
