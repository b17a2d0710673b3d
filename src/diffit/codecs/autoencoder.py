"""Latents: diffusers' autoencoders between pixels and the space that a model works in.

What a model sees is (z - shift) * scale, where z is the autoencoder's latent; scale and shift bring
it to about unit size (arXiv:2112.10752, section D.1, and one scale for each kind since).
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffit.codecs import source
from diffit.codecs.module import Kind, build_module, read_facts
from diffit.codecs.pixels import Pixels, PixelsConfig, Rounding
from diffit.codecs.tiles import tiled
from diffit.config import Settings, parse
from diffit.errors import CheckpointError

Numbers = float | tuple[float, ...]
"""One number, or one for each channel."""


class AutoencoderConfig(Settings):
    """The model works on the latents of an autoencoder, a folder or hub id of diffusers."""

    name: Literal["autoencoder"] = "autoencoder"
    path: str
    """Folder in diffusers' layout, or a hub id such as stabilityai/sd-vae-ft-ema."""
    kind: Kind | None = None
    """AutoencoderKL, AutoencoderTiny or AutoencoderDC; this and the next four follow from it."""
    channels: int | None = Field(default=None, gt=0)
    """Channels of a latent."""
    factor: int | None = Field(default=None, gt=0)
    """Pixels of an image, a side, for each of the latent."""
    scale: Numbers | None = None
    """A model sees (latent - shift) * scale."""
    shift: Numbers | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the autoencoder itself."""
    rounding: Rounding = "nearest"
    """How decoded values become 0..255; `down` cuts the fraction off, as published samples do."""
    slice: int = Field(default=1, gt=0, le=4096)
    """Images that go through the autoencoder at once; the last bit of a value depends on it."""
    tile: int = Field(default=1024, ge=0, le=1 << 16)
    """Larger images go through it in overlapping tiles of this side, in pixels; 0 never does so."""
    weights_hash: str | None = None
    """sha256 of its weights: a model refuses others than those it was trained with."""

    @property
    def resolved(self) -> bool:
        """Whether all that follows from the autoencoder's own configuration is known."""
        found = (self.kind, self.channels, self.factor, self.scale, self.shift)
        return all(value is not None for value in found)

    @model_validator(mode="after")
    def check(self) -> Self:
        for value in (self.scale, self.shift):
            if isinstance(value, tuple) and self.channels not in (None, len(value)):
                raise ValueError(
                    f"codec.scale and codec.shift have {len(value)} numbers, but codec.channels "
                    f"is {self.channels}"
                )
        if self.scale is not None and not all(v > 0 for v in _listed(self.scale)):
            raise ValueError(f"codec.scale {self.scale} must be more than 0")
        if 0 < self.tile < MIN_TILE:
            raise ValueError(f"codec.tile is {self.tile}; it must be 0 or at least {MIN_TILE}")
        return self


MIN_TILE = 128
"""A smaller tile would know too little of the image."""


def resolve(config: AutoencoderConfig) -> AutoencoderConfig:
    """The configuration with kind, channels, factor, scale and shift as the autoencoder has them.

    Its `config.json` alone is read, if anything is missing. CheckpointError if there is none, or if
    it contradicts what is set already; only scale and shift may be chosen.
    """
    if config.resolved:
        return config
    facts = read_facts(source.read_config(config.path), source=config.path)
    for name in ("kind", "channels", "factor"):
        given, found = getattr(config, name), getattr(facts, name)
        if given not in (None, found):
            raise CheckpointError(
                f"codec.{name} is {given}, but {config.path} has {found}; leave it out"
            )
    known = config.model_dump(exclude_none=True)
    return parse(AutoencoderConfig, {**facts._asdict(), **known}, source=config.path)


def identify(config: AutoencoderConfig) -> AutoencoderConfig:
    """The resolved configuration with the hash of the weights, which are read for it.

    CheckpointError if they are not those that ``config`` names already.
    """
    return Autoencoder(resolve(config)).identified()


def exchange(before: AutoencoderConfig, path: str, *, channels: int) -> AutoencoderConfig:
    """The autoencoder at ``path``, used as ``before`` was; a warning if its weights are others.

    It brings its own scale and shift. CheckpointError if its latents have another shape.
    """
    ways = ("precision", "rounding", "slice", "tile")
    used = {name: getattr(before, name) for name in ways}
    after = identify(AutoencoderConfig(path=path, **used))
    if after.channels != channels or before.factor not in (None, after.factor):
        raise CheckpointError(
            f"{path} has {after.channels} channels at 1/{after.factor} of the size, but the model "
            f"{channels} at 1/{before.factor or '?'}; name an autoencoder of the same latents"
        )
    if before.weights_hash not in (None, after.weights_hash):
        warnings.warn(
            f"{path} is another autoencoder than {before.path}, which the model was trained with",
            stacklevel=2,
        )
    return after


class Autoencoder:
    """Images as latents. Weights are read when they are first needed, and follow what they work on.

    Args:
        config: which autoencoder, and how it is used.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        self.config = config
        self._module: nn.Module | None = None

    @property
    def channels(self) -> int:
        """Channels c of a latent."""
        self.config = resolve(self.config)
        return int(self.config.channels or 0)

    @property
    def factor(self) -> int:
        """How many pixels a side of the image has for each of the latent."""
        self.config = resolve(self.config)
        return int(self.config.factor or 0)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, c, h, w) float32: the posterior mean in the model's space."""
        return self.to_model(self.moments(images)[:, : self.channels])

    def decode(self, x: Tensor) -> Tensor:
        """(B, c, h, w) in the model's space to (B, 3, H, W) uint8.

        ValueError if a value is not finite, of the latents or of what they are decoded to.
        """
        if not torch.isfinite(x).all():
            raise ValueError("the latents to decode hold values that are not finite")
        return Pixels(PixelsConfig(rounding=self.config.rounding)).decode(self.pixels(x))

    def moments(self, images: Tensor) -> Tensor:
        """Mean and standard deviation of the latents, before shift and scale.

        Args:
            images: (B, 3, H, W) uint8, H and W multiples of the factor.

        Returns:
            (B, 2 c, h, w) float32, the means first; the deviations of an autoencoder without a
            posterior are 0.
        """
        pixels = Pixels().encode(images)
        factor, (height, width) = self.factor, images.shape[2:]
        if images.shape[1] != 3:
            raise ValueError(f"an autoencoder takes images of 3 channels, not {images.shape[1]}")
        if height % factor or width % factor or not height or not width:
            raise ValueError(
                f"images are {height} x {width}; for this autoencoder both must be multiples of "
                f"{factor}"
            )
        module = self.module(images.device)
        dtype = next(module.parameters()).dtype

        def encode(x: Tensor) -> Tensor:
            return _moments(module, x.to(dtype)).float()

        with torch.no_grad():
            return self._apply(encode, pixels, tile=self.config.tile, multiple=factor)

    def pixels(self, x: Tensor) -> Tensor:
        """(B, c, h, w) in the model's space to (B, 3, H, W) float32, about [-1, 1], not clipped.

        A gradient passes, where one is asked for.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"latents are (B, {self.channels}, h, w) for this autoencoder, not {tuple(x.shape)}"
            )
        module = self.module(x.device)
        dtype = next(module.parameters()).dtype

        def decode(z: Tensor) -> Tensor:
            return module.decode(z.to(dtype)).sample.float()  # type: ignore[operator, no-any-return]

        return self._apply(decode, self.from_model(x), tile=self.config.tile // self.factor)

    def to_model(self, latents: Tensor) -> Tensor:
        """(latents - shift) * scale, over channels (B, c, h, w)."""
        scale, shift = self._affine(latents)
        return (latents - shift) * scale

    def from_model(self, x: Tensor) -> Tensor:
        """x / scale + shift, over channels (B, c, h, w)."""
        scale, shift = self._affine(x)
        return x / scale + shift

    def module(self, device: torch.device) -> nn.Module:
        """diffusers' network with its weights, on ``device``.

        CheckpointError if they are damaged, or not those that the configuration names.
        """
        if self._module is None:
            self.config = resolve(self.config)
            path, bf16 = self.config.path, self.config.precision == "bf16"
            files = source.weight_files(path)
            self._check_hash(source.digest(files) if self.config.weights_hash else None)
            self._module = build_module(
                source.read_config(path), files, source=path,
                dtype=torch.bfloat16 if bf16 else torch.float32,
            )  # fmt: skip
        return self._module.to(device)

    def identified(self) -> AutoencoderConfig:
        """The resolved configuration with the hash of the weights."""
        config = resolve(self.config)
        found = source.digest(source.weight_files(config.path))
        self._check_hash(found)
        return config.model_copy(update={"weights_hash": found})

    def _check_hash(self, found: str | None) -> None:
        wanted = self.config.weights_hash
        if wanted is not None and found != wanted:
            raise CheckpointError(
                f"the autoencoder at {self.config.path} (sha256 {str(found)[:12]}...) is not that "
                f"of this model ({wanted[:12]}...); to use it all the same, name it with --codec"
            )

    def _apply(
        self, function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, multiple: int = 1
    ) -> Tensor:
        """``function`` of a few images at a time, of large ones by tiles."""
        if not len(x):
            return function(x.new_zeros(1, *x.shape[1:]))[:0]
        large = 0 < tile < max(x.shape[2:])
        tile -= tile % multiple
        return torch.cat(
            [
                tiled(function, part, tile=tile, multiple=multiple) if large else function(part)
                for part in torch.split(x, self.config.slice)
            ]
        )

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, (c or 1, 1, 1) each, in the precision of ``like``."""
        self.config = resolve(self.config)
        scale, shift = (
            torch.tensor(_listed(value), dtype=like.dtype, device=like.device)[:, None, None]
            for value in (self.config.scale, self.config.shift)
        )
        return scale, shift


def _moments(module: Any, images: Tensor) -> Tensor:
    """(B, 2 c, h, w) mean and deviation, of any of the three kinds."""
    encoded = module.encode(images)
    if hasattr(encoded, "latent_dist"):
        return torch.cat([encoded.latent_dist.mean, encoded.latent_dist.std], dim=1)
    latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return torch.cat([latent, torch.zeros_like(latent)], dim=1)


def _listed(value: Any) -> list[float]:
    return list(value) if isinstance(value, (tuple, list)) else [float(value)]
