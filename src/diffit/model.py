"""A model: denoiser, codec and configuration. The one place where networks meet formulations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffit.codecs import Codec, CodecConfig, PixelsConfig, build_codec
from diffit.config import Settings
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import (
    EDMConfig,
    Formulation,
    FormulationConfig,
    build_formulation,
)
from diffit.errors import CheckpointError
from diffit.networks import NetworkConfig, build_network
from diffit.nn.linears import DenseConfig, LinearConfig, use_linears_
from diffit.nn.ternary import TernaryLinear


class ModelConfig(Settings):
    """Which network, in which formulation, on images in which form."""

    network: NetworkConfig
    formulation: FormulationConfig = EDMConfig()
    codec: CodecConfig = PixelsConfig()
    linear: LinearConfig = DenseConfig()
    """What the linear layers in the network's blocks are; `linear: ternary` is short for its
    name."""
    class_names: tuple[str, ...] = ()
    """What the labels mean; filled in from the data when a run starts."""
    task: str = ""
    """What the model was trained to restore; filled in when a run starts, empty for a model that
    makes images."""

    @field_validator("linear", mode="before")
    @classmethod
    def name_alone(cls, value: Any) -> Any:
        """The name of a kind of linear layers stands for its default settings."""
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.class_names and len(self.class_names) != self.network.classes:
            raise ValueError(
                f"model.class_names has {len(self.class_names)} names, but model.network.classes "
                f"is {self.network.classes}"
            )
        channels = getattr(self.codec, "channels", None)
        if channels not in (None, self.network.channels):
            raise ValueError(
                f"model.network.channels is {self.network.channels}, but the latents of "
                f"{getattr(self.codec, 'path', 'the codec')} have {channels}; they must agree"
            )
        learned = getattr(self.formulation, "learned_variance", False)
        if learned != self.network.learned_variance:
            raise ValueError(
                f"model.network.learned_variance is {self.network.learned_variance}, but "
                f"model.formulation.learned_variance is {learned}; they must agree"
            )
        return self


@dataclass
class Model:
    """What sampling, evaluation and training work with."""

    denoiser: Denoiser
    """D(x, sigma, label): the expected clean image."""
    codec: Codec
    """Pixels to the space that the denoiser works in, and back."""
    config: ModelConfig
    sampling: Any = None
    """The recommended `SamplingConfig`, if the model comes from a run."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: checkpoint, name of the weights, images seen, checksum."""

    @property
    def network(self) -> nn.Module:
        """F, the trained part."""
        return self.denoiser.network

    @property
    def formulation(self) -> Formulation:
        """What F sees and predicts at a noise level."""
        return self.denoiser.formulation

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the space that the denoiser works in."""
        return self.config.network.shape

    @property
    def classes(self) -> int:
        """Number of labels, 0 if there are none."""
        return self.config.network.classes

    @property
    def device(self) -> torch.device:
        """Where the network computes: where it is, but for parts that rest elsewhere."""
        told: torch.device | None = getattr(self.network, "computes_on", None)
        return told or next(self.network.parameters()).device

    def to(self, device: str | torch.device, *, dtype: torch.dtype | None = None) -> Self:
        """Move the model, and give the network another precision."""
        self.denoiser.to(device)
        if dtype is not None:
            self.network.to(dtype)
        return self

    def set_codec(self, config: CodecConfig) -> None:
        """Encode and decode with another codec."""
        self.config = self.config.model_copy(update={"codec": config})
        self.codec = build_codec(config)


def build_model(config: ModelConfig, *, seed: int = 0) -> Model:
    """A model with fresh weights that depend on ``seed`` alone, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % (1 << 64))  # all that PyTorch takes
        network = build_network(config.network)
        use_linears_(network, config.linear)
    return _model(network, config)


def empty_model(config: ModelConfig) -> Model:
    """A model whose weights take no memory yet and hold nothing: `fill` gives it some."""
    with torch.device("meta"), _NoInitialWeights():
        network = build_network(config.network)
        use_linears_(network, config.linear)
    return _model(network, config)


class _NoInitialWeights(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`: drawing numbers that are nowhere kept brings
    80 MB of libraries for symbols into memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def check_shapes(model: Model, shapes: Mapping[str, Sequence[int]], *, source: str) -> None:
    """CheckpointError unless tensors of these names and shapes are the model's weights."""
    wanted = model.network.state_dict()
    for key in sorted(wanted.keys() ^ shapes.keys()):
        side = "lacks" if key in wanted else "has the unknown"
        raise CheckpointError(f"{source} {side} tensor {key!r}; it belongs to another network")
    for key, shape in shapes.items():
        if tuple(shape) != tuple(wanted[key].shape):
            raise CheckpointError(
                f"{source}: tensor {key!r} has shape {tuple(shape)}, but its configuration "
                f"wants {tuple(wanted[key].shape)}"
            )


def fill(
    model: Model,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    matrices: torch.dtype | None = None,
) -> None:
    """Give a model copies of some or all of its named weights, frozen, in float32 unless told.

    ``matrices`` is the precision of the weights that `matrices_of` names, ``dtype`` that of others
    but those of `scales_of`, which stay as they are.
    """
    low = matrices_of(model.network) if matrices else frozenset()
    exact = scales_of(model.network)
    for name, tensor in tensors:
        kind = (matrices if name in low else dtype) or torch.float32
        kind = kind if tensor.is_floating_point() and name not in exact else tensor.dtype
        # One after the other, so that no more than one is there in two forms.
        _give(model.network, name, tensor.to(device, kind, copy=True))
    model.network.requires_grad_(False)


def _give(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in its place; CheckpointError, by name, for what cannot be there."""
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    if tensor.is_floating_point() != getattr(module, leaf).is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"tensor {name!r} holds {kind}, which its layer does not take")
    try:
        module.load_state_dict({leaf: tensor}, strict=False, assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{owner}: {error}") from None


def matrices_of(network: nn.Module) -> frozenset[str]:
    """Names of the weights of linear and convolutional layers in the network's blocks.

    Autocast computes with these in its own precision whatever they are kept in: kept in that one
    they take half the memory, and not a bit of a result changes. The masters of ternary layers are
    none of them: rounded, some would have other codes.
    """
    blocks: Any = network.blocks  # of the contract `Network`
    names = {module: name for name, module in network.named_modules()}
    layers = [layer for block in blocks() for layer in block.modules()]
    return frozenset(
        f"{names[layer]}.{weight}"
        for layer in layers
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        and not isinstance(layer, TernaryLinear)
        for weight, _ in layer.named_parameters(recurse=False)
    )


def scales_of(network: nn.Module) -> frozenset[str]:
    """Names of the scales of packed and integer weights, one number for many weights, and of the
    masters of ternary layers, some of which would have other codes if they were rounded.

    They keep the precision that they are stored in, whatever that of the network.
    """
    packed = {
        f"{name}.scale"
        for name, module in network.named_modules()
        if {"codes", "scale"} <= dict(module.named_buffers(recurse=False)).keys()
    }
    masters = {
        f"{name}.{kind}"
        for name, module in network.named_modules()
        if isinstance(module, TernaryLinear)
        for kind in ("weight", "scale")
    }
    return frozenset(packed | masters)


def _model(network: nn.Module, config: ModelConfig) -> Model:
    denoiser = Denoiser(network, build_formulation(config.formulation))
    return Model(denoiser, build_codec(config.codec), config)
