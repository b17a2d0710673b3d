"""What a task decides of a run: the method, its formulation, and what the network is shown."""

import torch

from diffit import draws
from diffit.config import parse
from diffit.data import Dataset, LatentSet, open_files
from diffit.data.image_set import ImageSet
from diffit.data.pairs import PairSet
from diffit.diffusion.bridge import InDIConfig, IRSDEConfig, ResShiftConfig
from diffit.diffusion.formulation import EDMConfig, build_formulation
from diffit.errors import ConfigError, UsageError
from diffit.generation import SamplingConfig
from diffit.restoration.supervised import PAIRS, usual_walk
from diffit.restoration.tasks import find_task
from diffit.training.settings import RunConfig

METHODS = {
    "concat": EDMConfig,
    "ir-sde": IRSDEConfig,
    "resshift": ResShiftConfig,
    "indi": InDIConfig,
}
"""Methods by name: the formulation that each of them is, with the settings of its authors."""


def with_task(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The configuration with all that its task decides; ConfigError if that cannot be."""
    network, formulation = config.model.network, config.model.formulation
    if not config.task.given:
        if network.condition_channels or formulation.name in METHODS or config.model.task:
            raise ConfigError(
                "this model restores images, but task says nothing of what is to be restored; set "
                "--task.name, or --task.pairs to the folder of the degraded images"
            )
        return config
    _refuse(config, dataset)
    own = formulation.name if formulation.name in METHODS else "concat"
    method = config.task.method or own
    other = method != own
    if other:
        formulation = METHODS[method]()
    # The network of InDI sees the degraded image as a part of x.
    condition = network.condition_channels or (0 if method == "indi" else network.channels)
    settings = config.model_dump()
    settings["model"]["network"]["condition_channels"] = condition
    settings["model"]["formulation"] = formulation.model_dump()
    settings["model"]["task"] = config.task.name or PAIRS
    if other or (method != "concat" and config.sampling == SamplingConfig()):
        walk = usual_walk(build_formulation(formulation))
        settings["sampling"] = {"steps": walk.steps, "sampler": walk.sampler or "euler"}
    return parse(RunConfig, settings, source="task")


def paired(clean: Dataset, config: RunConfig, *, size: int | None, channels: int) -> Dataset:
    """The images of a run with the degraded ones that ``task.pairs`` names."""
    if not config.task.pairs:
        return clean
    if not isinstance(clean, ImageSet):
        raise ConfigError(
            "task.pairs needs data.path to be a folder or zip of images, not "
            f"{config.data.path or 'a mixture'}"
        )
    return PairSet(clean, open_files(config.task.pairs), size=size, channels=channels)


def _refuse(config: RunConfig, dataset: Dataset) -> None:
    """ConfigError or UsageError for a task that this run cannot have."""
    network = config.model.network
    if isinstance(dataset, LatentSet):
        raise ConfigError(
            "a task needs images, and data.path holds latents; name the images themselves, which "
            "the autoencoder of model.codec then encodes"
        )
    if network.condition_channels not in (0, network.channels):
        raise ConfigError(
            f"model.network.condition_channels is {network.condition_channels}, but the degraded "
            f"image has {network.channels}; leave it out"
        )
    if config.train.teacher:
        raise ConfigError("train.teacher is for models that make images; leave it out with a task")
    if not config.task.name:
        return
    try:
        probe = torch.zeros(dataset.shape)
        find_task(config.task.name).degrade(probe, draws.generator(0, 0, "degrade"))
    except (UsageError, ValueError) as error:
        raise ConfigError(f"task.name {config.task.name}: {error}") from None
