"""State dicts of published codes to networks of this library, and back."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffit.convert.families import FAMILIES, find
from diffit.convert.family import check_layers, copies_of, linear_of
from diffit.convert.tensors import (
    check_tensors,
    expected_shapes,
    fixed_table,
    to_ours,
    to_theirs,
)
from diffit.networks import Network, NetworkConfig, build_network
from diffit.nn.linears import DenseConfig, LinearConfig, use_linears_

DENSE = DenseConfig()


def from_reference(
    family: str, state_dict: Mapping[str, Tensor], args: Mapping[str, Any]
) -> Network:
    """A network of this library with the weights of a reference implementation.

    Args:
        family: a key of `FAMILIES`: ``"diffit"`` (NVlabs/DiffiT, latent), ``"diffit-v2"``,
            ``"dit"`` (facebookresearch/DiT), ``"diffusers-dit"``, ``"uvit"`` (baofff/U-ViT),
            ``"mdt"`` (sail-sg/MDT, MDTv2), ``"dimr"`` (qihao067/DiMR), ``"terdit"``
            (Lucky-Lance/TerDiT, masters or packed) or ``"large-dit"`` (Large-DiT-ImageNet).
        state_dict: the reference's tensors under the reference's names.
        args: arguments of the reference's constructor; those left out have its defaults.

    Returns:
        The network in float32 and eval mode, on the CPU. Called as network(x, t, y) with the
        reference's own time it returns the reference's raw output.

    Raises:
        CheckpointError: a tensor is missing, unknown, of the wrong shape or not finite, or an
            argument is wrong.
    """
    source = find(family)
    config, linear = source.config(args), linear_of(source, state_dict)
    tensors = map_tensors(family, state_dict, config)
    copies = {n: t.to("cpu", _kept(t), copy=True) for n, t in tensors.items()}
    return network_of(config, copies, linear)


def map_tensors(
    family: str, state: Mapping[str, Tensor], config: NetworkConfig
) -> dict[str, Tensor]:
    """The source's tensors, checked, under our names; in its dtype, mostly in its memory."""
    source = find(family)
    empty = _empty(config, linear_of(source, state)).state_dict()
    names = source.names(config)
    codes = {names.get(name) for name, tensor in empty.items() if tensor.dtype == torch.uint8}
    check_tensors(
        state,
        expected_shapes(empty, names, source.shapes(config)),
        derived=source.derived(config),
        copies=copies_of(source, config),
        packed={name for name in codes if isinstance(name, str)},
    )
    tensors: dict[str, Tensor] = to_ours(state, empty, names)
    return {n: tensors[n] if n in tensors else fixed_table(n, config) for n in empty}


def network_of(
    config: NetworkConfig, tensors: Mapping[str, Tensor], linear: LinearConfig = DENSE
) -> Network:
    """A network in eval mode that holds ``tensors``, in float32; those that are so in their place.

    Its weights take no gradient, since the memory may be that of a file.
    """
    network = _empty(config, linear)
    network.load_state_dict({n: t.to(_kept(t)) for n, t in tensors.items()}, assign=True)
    return cast(Network, network.eval())


def _empty(config: NetworkConfig, linear: LinearConfig) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        network = build_network(config)
        use_linears_(network, linear)
    return network


def _kept(tensor: Tensor) -> torch.dtype:
    """The precision in which a network has a tensor of a file; codes stay as they are."""
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def to_reference(
    network: Network, family: str | None = None
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The inverse: family, state dict under the reference's names, constructor arguments.

    ValueError for a network with settings that the reference does not know. Without ``family`` the
    first one is taken that has such networks.
    """
    config = network.config
    fitting = [f for f, source in FAMILIES.items() if config.name == source.NETWORK]
    if not fitting:
        raise ValueError(f"no published code has a network like {config.name!r}")
    problems: list[ValueError] = []
    for name in fitting if family is None else [family]:
        try:
            check_layers(name, find(name), network)
            args = find(name).arguments(config)
        except ValueError as problem:
            problems.append(problem)
            continue
        return name, _theirs(name, network), args
    raise problems[0]


def _theirs(family: str, network: Network) -> dict[str, Tensor]:
    source = find(family)
    config, state = network.config, cast(nn.Module, network).state_dict()
    names = source.names(config)
    for name in state.keys() - names.keys():
        table = fixed_table(name, config)
        # Other orders of the same float64 operations round some entries to a neighbour.
        if not state[name].is_meta and not torch.allclose(state[name], table, rtol=0, atol=1e-6):
            raise ValueError(
                f"the code of {family} computes {name} anew, and this network has another one, as "
                "after resizing with scaled positions"
            )
    theirs = to_theirs(state, names, source.shapes(config)) | source.derived(config)
    return theirs | {copy: theirs[name] for copy, name in copies_of(source, config).items()}
