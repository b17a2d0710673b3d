"""Training on latents: which set, and which autoencoder its model belongs to."""

from pathlib import Path

from diffit.codecs import AutoencoderConfig, PixelsConfig
from diffit.codecs.autoencoder import identify, resolve
from diffit.config import parse
from diffit.data import Dataset, LatentSet, open_dataset
from diffit.data.latents import INDEX
from diffit.data.layouts.convert import refuse_mistaken
from diffit.errors import ConfigError
from diffit.training.settings import RunConfig

COMPARED = ("kind", "channels", "factor", "scale", "shift", "weights_hash")
"""Settings of an autoencoder on which latents depend."""


def open_training_latents(config: RunConfig) -> Dataset:
    """The latents of a run; ConfigError if it asks of them what cannot be done to latents."""
    data = config.data
    dataset = open_dataset(data.path, size=data.size, labels=data.labels)
    if not isinstance(dataset, LatentSet):
        raise ConfigError(f"{data.path} holds no latents; see `diffit data inspect {data.path}`")
    refuse_augmentation(config)
    if data.flip and not dataset.facts.mirrored:
        raise ConfigError(
            f"data.flip needs the latents of mirrored images, which {data.path} lacks; encode with "
            "--flip, or set --data.flip False"
        )
    if dataset.facts.pixels != "-1..1":
        raise ConfigError(
            f"{data.path} was made of pixels in [0, 1], as EDM2 does it, and its model would draw "
            "faded images; encode the images anew with `diffit data encode`"
        )
    return dataset


def refuse_augmentation(config: RunConfig) -> None:
    """ConfigError if latents are to be turned or stretched."""
    if config.data.augment:
        raise ConfigError("data.augment is for images, not for latents; set --data.augment 0")


def with_codec(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The configuration with the autoencoder that made the latents, its weights untouched."""
    given = config.model.codec
    if isinstance(dataset, LatentSet):
        codec = _of_latents(given, dataset)
    elif isinstance(given, AutoencoderConfig):
        codec = identify(given)
    else:
        return config
    model = config.model.model_copy(update={"codec": codec})
    return config.model_copy(update={"model": model})


def _of_latents(given: PixelsConfig | AutoencoderConfig, latents: LatentSet) -> AutoencoderConfig:
    if latents.codec is None:
        if isinstance(given, PixelsConfig):
            raise ConfigError(
                f"{latents.path} does not say which autoencoder made it; convert it with `diffit "
                "data convert-latents`, or set --model.codec.name autoencoder --model.codec.path "
                "FOLDER_OR_ID in a configuration file"
            )
        codec = resolve(given)
        refuse_mistaken(
            latents, codec.scale, way_out="or insist: diffit data convert-latents --no-check"
        )
        return codec
    made = parse(AutoencoderConfig, latents.codec, source=str(latents.path / INDEX))
    if isinstance(given, PixelsConfig):
        return made
    for name in COMPARED:
        wanted, found = getattr(given, name), getattr(made, name)
        if wanted is not None and found is not None and wanted != found:
            raise ConfigError(
                f"model.codec.{name} is {wanted}, but {latents.path} was made with {found}; leave "
                "model.codec out, or encode the images with that autoencoder"
            )
    own = given.model_dump(exclude_unset=True, exclude={*COMPARED, "path"})
    return made.model_copy(update={**own, "path": _path(given, made, latents)})


def _path(given: AutoencoderConfig, made: AutoencoderConfig, latents: LatentSet) -> str:
    """Where the autoencoder lies now: caches and autoencoders are moved."""
    if given.path == made.path or not Path(given.path).expanduser().is_dir():
        return made.path  # a hub id of a preset cannot be compared without a network
    if made.weights_hash is None:
        return given.path
    if identify(given).weights_hash != made.weights_hash:
        raise ConfigError(
            f"model.codec.path {given.path} holds another autoencoder than the one that made "
            f"{latents.path} ({made.path}); leave it out, or encode the images with that one"
        )
    return given.path
