"""Moving averages of the weights, several at once, updated after every step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from diffit.averages import LONGEST, half_life_decay, power_decay
from diffit.config import Settings
from diffit.training.shards import fill_parts, own_part

Decay = Callable[[int, int], float]
"""(batch, images seen after the step) to the share of the average that the step keeps."""


class AverageConfig(Settings):
    """Which moving averages of the weights are kept; several may be."""

    constant: tuple[float, ...] = ()
    """Decays per step; 0.9999 is stored as `ema-0.9999`."""
    half_life: tuple[int, ...] = ()
    """Half-lives in images; 500000 is stored as `ema-500000`."""
    ramp: float = 0.05
    """A half-life is at most this share of the images seen so far; 0 is no such limit."""
    power: tuple[float, ...] = ()
    """Relative lengths of power-function averages; 0.05 is stored as `ema-power-0.05`. With two of
    them, such as 0.05 and 0.1, any other can be rebuilt later: `--weights ema-power-0.08`."""
    power_every: int = 0
    """Images between two stored states of the power-function averages; 0: at every checkpoint."""
    default: str = ""
    """The weights that pictures and `diffit sample` use; empty is the first average."""

    @model_validator(mode="after")
    def check(self) -> Self:
        for decay in self.constant:
            if not 0 <= decay < 1:
                raise ValueError(f"train.ema.constant {decay} must lie in 0 <= decay < 1")
        for images in self.half_life:
            if images <= 0:
                raise ValueError(f"train.ema.half_life {images} must be more than 0 images")
        for length in self.power:
            if not 0 < length < LONGEST:
                raise ValueError(f"train.ema.power {length} must lie between 0 and {LONGEST:.3f}")
        if self.ramp < 0 or self.power_every < 0:
            raise ValueError("train.ema.ramp and train.ema.power_every must not be negative")
        if self.default and self.default not in ("model", *self.names):
            known = ", ".join(("model", *self.names))
            raise ValueError(f"train.ema.default {self.default!r} is not kept; there are: {known}")
        return self

    @property
    def decays(self) -> dict[str, Decay]:
        """Name of each average -> its decay, in the order in which they are listed."""
        rules: dict[str, Decay] = {}
        for decay in self.constant:
            rules[f"ema-{decay}"] = partial(_constant, decay=decay)
        for images in self.half_life:
            rules[f"ema-{images}"] = partial(_half_life, half_life=images, ramp=self.ramp)
        for length in self.power:
            rules[f"ema-power-{length}"] = partial(power_decay, length=length)
        return rules

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all averages."""
        return tuple(self.decays)

    @property
    def chosen(self) -> str:
        """Name of the weights that pictures and sampling use."""
        return self.default or next(iter(self.names), "model")


class Averages:
    """Copies of a network's tensors that follow its weights, one copy for each average.

    Of a sharded network each process averages the part that it holds.

    Args:
        network: the trained network; the averages start as its present state.
        config: which averages to keep.
    """

    def __init__(self, network: nn.Module, config: AverageConfig) -> None:
        self.network = network
        self.decays = config.decays
        self.tensors = {name: _copy(network) for name in self.decays}

    @torch.no_grad()
    def update(self, *, batch: int, after: int) -> None:
        """Follow a step of ``batch`` images that ends ``after`` images into the run."""
        current = {name: own_part(tensor) for name, tensor in self.network.state_dict().items()}
        moving = [name for name, tensor in current.items() if tensor.is_floating_point()]
        for name, decay in self.decays.items():
            kept = {key: own_part(tensor) for key, tensor in self.tensors[name].items()}
            torch._foreach_lerp_(
                [kept[key] for key in moving],
                [current[key] for key in moving],
                1 - decay(batch, after),
            )
            for key in current.keys() - set(moving):
                kept[key].copy_(current[key])

    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Take the state of one average from a checkpoint."""
        fill_parts(self.tensors[name], tensors)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}


def _constant(batch: int, after: int, *, decay: float) -> float:
    return decay


def _half_life(batch: int, after: int, *, half_life: int, ramp: float) -> float:
    return half_life_decay(batch, after - batch, half_life, ramp)
