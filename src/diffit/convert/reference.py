"""State dicts of published codes to networks of this library, and back."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffit.convert.families import FAMILIES, find
from diffit.convert.family import copies_of
from diffit.convert.tensors import (
    check_tensors,
    expected_shapes,
    fixed_table,
    to_ours,
    to_theirs,
)
from diffit.networks import Network, NetworkConfig, build_network


def from_reference(
    family: str, state_dict: Mapping[str, Tensor], args: Mapping[str, Any]
) -> Network:
    """A network of this library with the weights of a reference implementation.

    Args:
        family: a key of `FAMILIES`: ``"diffit"`` (NVlabs/DiffiT, latent), ``"diffit-v2"``,
            ``"dit"`` (facebookresearch/DiT), ``"diffusers-dit"``, ``"uvit"`` (baofff/U-ViT),
            ``"mdt"`` (sail-sg/MDT, MDTv2) or ``"dimr"`` (qihao067/DiMR).
        state_dict: the reference's tensors under the reference's names.
        args: arguments of the reference's constructor; those left out have its defaults.

    Returns:
        The network in float32 and eval mode, on the CPU. Called as network(x, t, y) with the
        reference's own time it returns the reference's raw output.

    Raises:
        CheckpointError: a tensor is missing, unknown, of the wrong shape or not finite, or an
            argument is wrong.
    """
    config = find(family).config(args)
    tensors = map_tensors(family, state_dict, config)
    copies = {n: t.to("cpu", torch.float32, copy=True) for n, t in tensors.items()}
    return network_of(config, copies)


def map_tensors(
    family: str, state: Mapping[str, Tensor], config: NetworkConfig
) -> dict[str, Tensor]:
    """The source's tensors, checked, under our names; in its dtype, mostly in its memory."""
    source = find(family)
    with torch.device("meta"):  # shapes alone
        empty = build_network(config).state_dict()
    names = source.names(config)
    check_tensors(
        state,
        expected_shapes(empty, names, source.shapes(config)),
        derived=source.derived(config),
        copies=copies_of(source, config),
    )
    tensors: dict[str, Tensor] = to_ours(state, empty, names)
    return {n: tensors[n] if n in tensors else fixed_table(n, config) for n in empty}


def network_of(config: NetworkConfig, tensors: Mapping[str, Tensor]) -> Network:
    """A network in eval mode that holds ``tensors``, in float32; those that are so in their place.

    Its weights take no gradient, since the memory may be that of a file.
    """
    with torch.device("meta"):
        network = build_network(config)
    network.load_state_dict({n: t.float() for n, t in tensors.items()}, assign=True)
    return cast(Network, network.eval())


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
