"""Before the first step: the data, what it decides of the configuration, and the state."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffit.codecs import Autoencoder, AutoencoderConfig, PixelsConfig, build_codec
from diffit.data import Dataset, LatentSet, open_data
from diffit.data.layouts import layout_of
from diffit.diffusion.denoiser import Denoiser
from diffit.diffusion.formulation import build_formulation
from diffit.diffusion.loss import LOSS_WEIGHTS, LossWeight
from diffit.distributed import is_first, world
from diffit.errors import ConfigError
from diffit.generation import check
from diffit.model import Model, ModelConfig, build_model, empty_model
from diffit.sealed import clear_leftovers
from diffit.training.distill import Teacher
from diffit.training.latents import (
    open_training_latents,
    refuse_augmentation,
    with_codec,
)
from diffit.training.parallel import replicate
from diffit.training.restoring import paired, with_task
from diffit.training.settings import RunConfig, TrainConfig
from diffit.training.state import State, new_state, newest_of, restore
from diffit.training.step import Objective
from diffit.training.transfer import carry_over, describe, write_report

TRAINED = ("dense", "ternary")
"""Kinds of linear layers whose weights can be trained."""

MAX_TAU = 16.0
"""Beyond it a sigmoid is 0 or 1 to the seventh digit."""


def open_training_data(config: RunConfig) -> Dataset:
    """The images of a run, cropped and resized to what its network takes, or its latents."""
    data, network = config.data, config.model.network
    if not data.path and not data.mix:
        raise ConfigError("data.path is empty; name your images: --data.path FOLDER_OR_ZIP")
    if data.path and layout_of(data.path):
        return open_training_latents(config)
    codec = config.model.codec
    if isinstance(codec, PixelsConfig):
        channels, factor = network.channels, 1
        if channels not in (1, 3):
            raise ConfigError(
                f"model.network.channels is {channels}, but images have 1 or 3: this network works "
                "on latents; make a cache of them with `diffit data encode`, and name it with "
                "--data.path"
            )
    else:
        refuse_augmentation(config)
        channels, factor = 3, Autoencoder(codec).factor
    _, height, width = network.shape
    size = data.size or (factor * height if height == width else None)
    channels = data.channels or channels
    images = open_data(data.model_copy(update={"size": size, "channels": channels}))
    return paired(images, config, size=size, channels=channels)


def complete(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The configuration with the names of the classes; ConfigError if it does not fit the data."""
    config = with_task(with_codec(config, dataset), dataset)
    model = config.model
    _refuse_other_shape(model, dataset)
    _refuse_linear(model)
    _refuse_missing_inputs(config)
    _refuse_coarse_weights(config)
    _refuse_flat_times(config)
    _refuse_sampling(config)
    classes = model.network.classes
    if not classes:
        return config
    if len(dataset.classes) != classes:
        raise ConfigError(
            f"model.network.classes is {classes}, but {config.data.path} has "
            f"{len(dataset.classes)} classes; set --model.network.classes {len(dataset.classes)}"
        )
    named = model.model_copy(update={"class_names": dataset.classes})
    return config.model_copy(update={"model": named})


def begin(
    config: RunConfig, out: Path, device: torch.device, *, resume: bool
) -> tuple[State, list[str]]:
    """The state to go on from, and what the user should know about it."""
    for place in ("checkpoints", "averages") if is_first() else ():
        clear_leftovers(out / place)
    train = config.train
    folder, notes = newest_of(out) if resume else (None, [])
    sharded = train.parallel.kind == "fsdp" and world() > 1
    # What is about to be filled needs no weights, which may not fit into one process.
    model = (
        empty_model(config.model)
        if folder and sharded
        else build_model(config.model, seed=train.seed)
    )
    if train.init_from and folder is None:
        report = carry_over(model, train.init_from)
        if is_first():
            write_report(out / "carried.json", report)
        notes += describe(report)
    if train.activation_checkpointing:
        model.network.activation_checkpointing = True  # type: ignore[assignment]
    if train.compile:
        compile_in_place(model.network)
    state = new_state(model, config, device)
    if folder is not None:
        restore(state, folder)
    return state, notes


def build_objective(state: State, config: RunConfig, teacher: Teacher | None = None) -> Objective:
    """What the steps of a run minimise."""
    train = config.train
    alone = Objective(
        state.model,
        loss_weight(state, config),
        train.precision,
        state.scale,
        train.coarse_weights,
        teacher,
    )
    # A network that could be told of augmentation, and is not, has a layer that learns nothing.
    unused = getattr(config.model.network, "augment", False) and not config.data.augment
    together = replicate(state.model.network, alone.losses, unused=unused)
    return replace(alone, together=together)


def compile_in_place(network: nn.Module) -> None:
    """Compile the blocks, one after the other; the names of the parameters stay what they are.

    Equal blocks share what was compiled, so that a deep network takes no longer than a shallow one,
    and the blocks of a sharded network are put together outside of compiled code.
    """
    blocks: Any = network.blocks  # of the contract `Network`
    for block in blocks():
        block.compile()


def loss_weight(state: State, config: RunConfig) -> LossWeight | None:
    """The loss weight that a configuration names."""
    train = config.train
    if train.loss_weight == "none":
        return None
    keywords = {} if train.loss_gamma is None else {"gamma": train.loss_gamma}
    return LOSS_WEIGHTS[train.loss_weight](state.model.formulation, **keywords)


def _refuse_linear(model: ModelConfig) -> None:
    """ConfigError for layers that learn nothing, or settings that no layer has."""
    if model.linear.name not in TRAINED:
        raise ConfigError(
            f"model.linear.name {model.linear.name!r} is for models that are trained already; "
            "train with ternary or dense layers, and make others of them with `diffit quantize`"
        )
    empty_model(model)


def refuse_parallel(train: TrainConfig, device: torch.device) -> None:
    """ConfigError if the processes that there are cannot share the work so."""
    if train.batch < world():
        raise ConfigError(
            f"train.batch {train.batch} is fewer images than {world()} processes; make it larger, "
            "or start fewer"
        )
    if train.parallel.kind != "fsdp":
        return
    if train.parallel.offload and device.type != "cuda":
        raise ConfigError(
            f"train.parallel.offload is for GPUs, and this is {device.type}; leave it out"
        )
    if train.batch % world():
        # Every process calls every block equally often, or they wait for each other for ever.
        raise ConfigError(
            f"train.batch {train.batch} is no multiple of {world()} processes, as "
            "train.parallel.kind fsdp needs; choose one, or ddp"
        )


def _refuse_missing_inputs(config: RunConfig) -> None:
    """ConfigError if the network cannot be told what training wants to tell it."""
    network = config.model.network
    if config.data.augment and not getattr(network, "augment", False):
        raise ConfigError(
            f"data.augment needs model.network.augment: {network.name} must be told what was "
            "done to an image, or it draws such images; set data.augment 0"
        )
    if network.classes and config.train.label_dropout and not network.null_class:
        raise ConfigError(
            "train.label_dropout needs model.network.null_class, the vector for no class; set "
            "train.label_dropout 0"
        )


def _refuse_coarse_weights(config: RunConfig) -> None:
    """ConfigError unless there is one weight for each coarser resolution of the network."""
    given = config.train.coarse_weights
    coarse = getattr(config.model.network, "resolutions", 1) - 1
    if given is not None and len(given) != coarse:
        raise ConfigError(
            f"train.coarse_weights has {len(given)} numbers, but the network predicts at {coarse} "
            "coarser resolutions; give one for each, or leave it out"
        )


def _refuse_flat_times(config: RunConfig) -> None:
    """ConfigError if time-dependent norms would see times at which they no longer change."""
    tau = getattr(config.model.network, "tau", None)
    if tau is None:
        return
    scale, shift = tau
    formulation = build_formulation(config.model.formulation)
    ends = torch.tensor([formulation.sigma_min, formulation.sigma_max], dtype=torch.float64)
    low, high = sorted(formulation.time(ends).tolist())
    told = [scale * low + shift, scale * high + shift]
    if max(map(abs, told)) > MAX_TAU:
        better = 2 / (high - low)
        raise ConfigError(
            f"the time-dependent norms would be told times from {told[0]:.3g} to {told[1]:.3g}, "
            f"where they hardly change; set --model.network.tau-scale {better:.3g} "
            f"--model.network.tau-shift {-1 - better * low:.3g}, or another "
            "model.formulation.time, such as log_snr"
        )


def _refuse_sampling(config: RunConfig) -> None:
    """ConfigError if the model could not be sampled as its configuration recommends."""
    model = config.model.model_copy(update={"task": ""})
    # The settings are enough to tell: no weights are made for it.
    denoiser = Denoiser(nn.Identity(), build_formulation(model.formulation))
    bridge = denoiser.formulation.bridge
    try:
        if bridge is not None:
            bridge.times(config.sampling.steps)
            return
        check(Model(denoiser, build_codec(model.codec), model), config.sampling)
    except ValueError as error:
        raise ConfigError(f"sampling: {error}") from None


def _refuse_other_shape(model: ModelConfig, dataset: Dataset) -> None:
    """ConfigError unless the network takes what the data are, in pixels or in latents."""
    wanted = model.network.shape
    if isinstance(dataset, LatentSet):
        if dataset.shape != wanted:
            raise ConfigError(
                f"the latents are {_latent(dataset.shape)}, but model.network takes "
                f"{_latent(wanted)}; set --model.network.size {dataset.shape[1]} "
                f"--model.network.channels {dataset.shape[0]}"
            )
        return
    if isinstance(model.codec, AutoencoderConfig):
        codec = Autoencoder(model.codec)
        if codec.channels != wanted[0]:
            raise ConfigError(
                f"model.network.channels is {wanted[0]}, but latents of {model.codec.path} have "
                f"{codec.channels}; set --model.network.channels {codec.channels}"
            )
        wanted = (3, codec.factor * wanted[1], codec.factor * wanted[2])
    if dataset.shape != wanted:
        raise ConfigError(
            f"the images are {_shape(dataset.shape)}, but model.network takes "
            f"{_shape(wanted)}; set data.size and data.channels, or the network's"
        )


def _latent(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} x {shape[2]} of {shape[0]} channels"


def _shape(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{height} x {width} pixels of {channels} channel{'s' if channels > 1 else ''}"
