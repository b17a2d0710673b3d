"""Every network at one size: the same images, the same formulation, as many parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from diffit.diffusion.formulation import ContinuousTime
from diffit.errors import UsageError
from diffit.networks import NETWORKS, NetworkConfig, build_network
from diffit.networks.count import count_parameters

TOLERANCE = 0.03
"""How far from the wanted number of parameters a network may be."""

STRETCH = (0.25, 4.0)
"""How far the MLP may differ from its usual size to meet that number."""

WIDEST = 4096


class Contender(NamedTuple):
    """How a network is brought to a size, and what it is told of the noise level.

    Attributes:
        title: its name in tables.
        time: of the formulation, as its authors train it: the step index, or the logarithm.
        step: widths are multiples of it.
        mlp_ratio: usual size of its MLP.
        shape: (width, patch, finest side) to its own settings.
    """

    title: str
    time: ContinuousTime
    step: int
    mlp_ratio: float
    shape: Callable[[int, int, int], dict[str, Any]]


def _column(depth: int, **more: Any) -> Callable[[int, int, int], dict[str, Any]]:
    return lambda width, patch, side: {
        "width": width, "patch": patch, "depth": depth, "heads": 4, **more
    }  # fmt: skip


def _diffit(width: int, patch: int, side: int) -> dict[str, Any]:
    levels = 2 if side < 16 else 3
    widths = [width, width * 3 // 2, width * 2][:levels]
    return {"widths": widths, "blocks": [1] * levels, "time_width": 2 * width, "time_features": 64}


def _dimr(width: int, patch: int, side: int) -> dict[str, Any]:
    # tau runs from -1 to 1 over the time t of the formulation.
    return {
        "widths": [width, width // 2], "depths": [7, 3], "heads": 4,
        "tau_scale": 2.0, "tau_shift": -1.0,
    }  # fmt: skip


CONTENDERS: dict[str, Contender] = {
    "diffit": Contender("DiffiT", "log4", 8, 4.0, _diffit),
    "latent-diffit": Contender("latent DiffiT", "999t", 4, 4.0, _column(7)),
    "dit": Contender("DiT", "999t", 4, 4.0, _column(7)),
    "uvit": Contender("U-ViT", "999t", 4, 4.0, _column(7)),
    "mdt": Contender("MDTv2", "999t", 4, 4.0, _column(7, decoder=1)),
    "dimr": Contender("DiMR", "t", 8, 2.0, _dimr),
    "large-dit": Contender("Large-DiT", "999t", 8, 4.0, _column(7, hidden_multiple=4)),
}
"""Those that `diffit bench networks` knows, by the name of the network."""


def contender(
    name: str, parameters: int, *, shape: tuple[int, int, int], classes: int, patch: int
) -> NetworkConfig:
    """The network of that name with about ``parameters`` parameters.

    The width that comes nearest is taken; the MLP then makes up for the rest.

    Args:
        name: key of `CONTENDERS`.
        parameters: wanted number.
        shape: (C, H, W) of the images.
        classes: number of labels, 0 for none.
        patch: side of a patch, for networks that have one size of it.

    Raises:
        UsageError: no such network comes within 3 %.
    """
    entry = CONTENDERS[name]

    def build(width: int, ratio: float) -> NetworkConfig:
        channels, height, across = shape
        given = {"size": (height, across), "channels": channels, "classes": classes}
        given |= {"mlp_ratio": ratio, **entry.shape(width, patch, min(height, across))}
        config: Any = NETWORKS[name][0].model_validate(given)
        found: NetworkConfig = config
        return found

    width = entry.step * _nearest(
        lambda n: _count(build(entry.step * n, entry.mlp_ratio)), parameters
    )
    low, high = (entry.mlp_ratio * factor for factor in STRETCH)
    for _ in range(12):  # halving: an MLP has a few hundred hidden units at most between the ends
        middle = (low + high) / 2
        low, high = (low, middle) if _count(build(width, middle)) > parameters else (middle, high)
    found = min((build(width, low), build(width, high)), key=lambda c: abs(_count(c) - parameters))
    if abs(_count(found) - parameters) > TOLERANCE * parameters:
        raise UsageError(
            f"{entry.title} cannot have {parameters:,} parameters for these images, the nearest is "
            f"{_count(found):,}; choose other --parameters, or --networks without {name}"
        )
    return found


def _nearest(count: Callable[[int], int], wanted: int) -> int:
    """The positive number for which an increasing count comes nearest to what is wanted."""
    low, high = 1, 1
    while count(high) < wanted and high < WIDEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) > wanted else (middle, high)
    return min((low, high), key=lambda n: abs(count(n) - wanted))


def _count(config: NetworkConfig) -> int:
    with torch.device("meta"):
        return count_parameters(build_network(config))
