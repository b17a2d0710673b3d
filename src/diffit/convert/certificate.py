"""Certificates: our network beside the source's own formulas, on the source's own tensors."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffit.config import Settings
from diffit.convert.family import Family
from diffit.diffusion.formulation import Formulation
from diffit.errors import CheckpointError
from diffit.networks import Network, NetworkConfig, build_network
from diffit.networks.count import count_parameters

LIMIT = 1e-3
"""A float32 difference, relative to the largest output, that no rounding explains."""


class Comparison(Settings):
    """How far our network is from the source's formulas, which are evaluated in float64.

    Differences are the largest of all outputs; relative ones are divided by the largest output.
    """

    images: int
    """Random images compared, at a high and at a low noise level, with and without a class."""
    largest_output: float
    float64: float
    """Largest difference of our network in float64: whether the formulas are the same."""
    float64_relative: float
    float32: float
    """In float32, as it is used: what rounding adds."""
    float32_relative: float


def parameters_of(config: NetworkConfig) -> int:
    """Trained numbers of a network; none are made for it."""
    with torch.device("meta"):
        return count_parameters(build_network(config))


class Certificate(Settings):
    """What was converted, and how well it agrees with its source; no date, equal every time."""

    family: str
    source: str
    """The code whose formulas were compared."""
    file: str
    """Name of the file or folder."""
    weights: str
    """The set of weights, if the file had several."""
    sha256: str
    """Of the file; of several, of the list of their hashes."""
    parameters: int
    """Trained numbers of our network."""
    mapped: int
    """Tensors of the source that became ours."""
    dropped: int
    """Tensors of the source that follow from others, checked."""
    comparison: Comparison | None
    """None if it was left out."""
    resized: str = ""
    """How tables were interpolated afterwards, if they were."""
    note: str = ""
    """Anything else that a reader should know."""


@torch.inference_mode()
def compare(
    network: Network,
    family: Family,
    state: Mapping[str, Tensor],
    args: Mapping[str, Any],
    formulation: Formulation,
) -> Comparison:
    """Run both on two random images; CheckpointError if they are not the same function.

    Needs the memory of the activations of two images beside that of the weights.
    """
    config = network.config
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, *config.shape, generator=source)
    time = formulation.time(formulation.training_sigma(torch.tensor([0.9, 0.1]).double())).float()
    label = torch.tensor([0, config.classes if config.null_class else config.classes - 1])
    expected = family.plain_forward(state, args, x.double(), time, label)
    single = network(x, time, label if config.classes else None).double()
    with widened(cast(nn.Module, network)):
        double = network(x.double(), time, label if config.classes else None)
    scale = float(expected.abs().max())
    gaps = [float((ours - expected).abs().max()) for ours in (double, single)]
    if not all(gap <= LIMIT * scale for gap in gaps):  # also if one is not a number
        raise CheckpointError(
            f"the converted network differs from the formulas of {family.SOURCE} by "
            f"{max(gaps):.3g} at values up to {scale:.3g}: nothing was written. Are the weights "
            "those of a trained model? If so, please report this"
        )
    relative = [gap / scale if scale else 0.0 for gap in gaps]
    return Comparison(
        images=len(x),
        largest_output=scale,
        float64=gaps[0],
        float64_relative=relative[0],
        float32=gaps[1],
        float32_relative=relative[1],
    )


@contextlib.contextmanager
def widened(network: nn.Module) -> Iterator[None]:
    """Run a network in float64, with the weights of one block in float64 at a time."""
    blocks: list[nn.Module] = list(cast(Network, network).blocks())
    inside = {module for block in blocks for module in block.modules()}
    kept: dict[nn.Module, Kept] = {}

    def widen(block: nn.Module, _: Any) -> None:
        kept[block] = _widen(block.modules())

    def restore(block: nn.Module, *_: Any) -> None:
        _restore(kept.pop(block))

    handles = [block.register_forward_pre_hook(widen) for block in blocks]
    handles += [block.register_forward_hook(restore, always_call=True) for block in blocks]
    around = _widen(module for module in network.modules() if module not in inside)
    try:
        yield
    finally:
        _restore(around)
        for handle in handles:
            handle.remove()


Kept = list[tuple[dict[str, Any], dict[str, Any]]]


def _widen(modules: Iterable[nn.Module]) -> Kept:
    """Put float64 copies into modules; their tables, and what was in them."""
    tables: list[dict[str, Any]] = []
    for module in modules:
        tables += [module._parameters, module._buffers]
    kept = [(table, dict(table)) for table in tables]
    for table in tables:
        for name, tensor in table.items():
            if tensor is not None and tensor.is_floating_point():
                wide = tensor.double()
                is_weight = isinstance(tensor, nn.Parameter)
                table[name] = nn.Parameter(wide, requires_grad=False) if is_weight else wide
    return kept


def _restore(kept: Kept) -> None:
    for table, before in kept:
        table.update(before)
