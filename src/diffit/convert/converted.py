"""From a file or folder of published weights to a model, with its certificate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffit.codecs import AutoencoderConfig, CodecConfig, build_codec
from diffit.codecs.autoencoder import resolve
from diffit.convert import diffusers_dit
from diffit.convert.certificate import Certificate, compare, parameters_of
from diffit.convert.families import detect, find
from diffit.convert.family import copies_of, linear_of
from diffit.convert.licences import Licence
from diffit.convert.reference import map_tensors, network_of
from diffit.convert.resize import Positions, resize
from diffit.convert.weights import Source, read
from diffit.diffusion.formulation import build_formulation
from diffit.errors import CheckpointError
from diffit.hub import Card
from diffit.model import Model, ModelConfig, empty_model, fill
from diffit.networks import NetworkConfig
from diffit.sampling import SamplingConfig

Tell = Callable[[str], None]


@dataclass
class Converted:
    """A published model as one of this library."""

    config: ModelConfig
    sampling: SamplingConfig
    """How its authors sample."""
    tensors: dict[str, Tensor]
    """Weights of the network, in the precision of the file, mostly mapped from it."""
    certificate: Certificate
    licence: Licence

    def model(self, **where: Any) -> Model:
        """With copies of the weights, in float32 unless told; ``where`` as in `fill`."""
        model = empty_model(self.config)
        fill(model, self.tensors.items(), **where)
        model.sampling = self.sampling
        model.provenance = {
            "checkpoint": self.certificate.file,
            "weights": self.certificate.weights or "model",
            "blake2b": None,
            "sha256": self.certificate.sha256,
            "licence": self.licence.name,
        }
        return model

    def card(self) -> Card:
        """What a hub-style folder says of it."""
        return Card(
            licence=self.licence.name,
            licence_url=self.licence.url,
            licence_note=self.licence.note,
            source=f"{self.certificate.file} of {self.certificate.source}",
            provenance={"sha256": self.certificate.sha256, "set": self.certificate.weights or None},
            certificate=flat(self.certificate),
        )


def from_file(
    path: str | Path,
    *,
    family: str | None = None,
    weights: str | None = None,
    heads: int | None = None,
    source_size: int | None = None,
    size: int | None = None,
    positions: Positions = "scaled",
    codec: str | None = None,
    licence: str | None = None,
    certify: bool = True,
    tell: Tell = lambda _: None,
) -> Converted:
    """A model of a file or folder of published weights.

    Args:
        path: a `.safetensors`, `.pt`, `.pth`, `.ckpt` or `.bin` file, or a folder of diffusers.
        family: a key of `FAMILIES`; by default the one that knows the names of the tensors.
        weights: which set of a training checkpoint, such as `ema`.
        heads: attention heads, where neither weights nor published sizes tell.
        source_size: side in pixels that the weights are for, where they do not tell.
        size: side in pixels that the model shall be for; tables are interpolated, see `resize`.
        positions: how, see `resize`.
        codec: folder or hub id of the autoencoder, in place of the family's.
        licence: of the weights, in place of the family's.
        certify: compare with the source's formulas; takes three forward passes of two images.
        tell: called with a sentence before each step that takes a while.

    Raises:
        CheckpointError: it cannot be read, is of no known family, or is not what its names say.
    """
    source = read(Path(path), weights)
    name = family or detect(source.tensors, source=str(path))
    facts = _facts(source, heads, source_size)
    state, args = _arguments(name, source, facts)
    module = find(name)
    config = module.config(args)
    tell(f"checking {len(state)} tensors of family {name}")
    tensors = map_tensors(name, state, config)
    linear = linear_of(module, state)
    network = network_of(config, tensors, linear)
    published = module.published(config)
    comparison = None
    if certify:
        tell(f"comparing with the formulas of {module.SOURCE}")
        formulation = build_formulation(published.formulation)
        comparison = compare(network, module, state, args, formulation)
    chosen = _codec(codec or facts.get("codec"), published.codec, config.shape[0])
    resized, before = "", config.shape[1]
    side = before if size is None else _latent_side(size, chosen)
    if side != before:
        tell(f"interpolating tables for {size} x {size} pixels")
        config, tensors = resize(config, tensors, side, positions=positions)
        resized = f"{before} to {config.shape[1]} a side, positions {positions}"
    dropped = module.derived(config).keys() | copies_of(module, config).keys()
    certificate = Certificate(
        family=name,
        source=module.SOURCE,
        file=source.path.name or source.path.resolve().name,
        weights=source.weights,
        sha256=source.sha256(),
        parameters=parameters_of(config),
        mapped=len(state.keys() - dropped),
        dropped=len(
            state.keys() & (module.derived(config).keys() | copies_of(module, config).keys())
        ),
        comparison=comparison,
        resized=resized,
    )
    return Converted(
        ModelConfig(
            network=config,
            formulation=published.formulation,
            codec=chosen,
            linear=linear,
            class_names=_class_names(facts, config),
        ),
        module.published(config).sampling,
        tensors,
        certificate,
        Licence(name=licence) if licence else module.LICENCE,
    )


def _facts(source: Source, heads: int | None, source_size: int | None) -> dict[str, Any]:
    facts = dict(source.facts)
    if heads is not None:
        facts["num_heads"] = heads
    if source_size is not None:
        facts["image_size"] = source_size
    if "image_size" in facts:
        side = facts["image_size"] / (8 if _draws_latents(source.tensors) else 1)
        if side != int(side):
            raise CheckpointError(
                f"images of side {facts['image_size']} have no whole latent; 8 must divide it"
            )
        facts["input_size"] = int(side)
    return facts


def _draws_latents(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weights are for the four channels of Stable Diffusion's autoencoder."""
    for name, weight in tensors.items():
        if name.endswith("embedder.proj.weight") or name == "pos_embed.proj.weight":
            return weight.ndim == 4 and weight.shape[1] == 4
        if name == "x_embedder.weight":  # Large-DiT: patches of 2 x 2 in a row
            return weight.ndim == 2 and weight.shape[1] == 16
    return False


def _arguments(
    family: str, source: Source, facts: Mapping[str, Any]
) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The tensors in the family's layout, and its constructor arguments."""
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    if family == "dit" and diffusers_dit.recognises(shapes):
        # The weights of a diffusers folder, computed as facebookresearch/DiT does.
        theirs = diffusers_dit.infer(shapes, facts)
        map_tensors("diffusers-dit", source.tensors, diffusers_dit.config(theirs))
        return diffusers_dit.to_dit(source.tensors, theirs)
    module = find(family)
    if not module.recognises(shapes):
        raise CheckpointError(
            f"{source.path} is not of family {family}; leave --family out to have it found"
        )
    return source.tensors, module.infer(shapes, facts)


def _codec(path: str | None, usual: CodecConfig, channels: int) -> CodecConfig:
    """The family's codec, or the autoencoder at ``path``, whose configuration is read."""
    if path is None:
        return usual
    chosen = resolve(AutoencoderConfig(path=path, rounding=usual.rounding))
    if chosen.channels != channels:
        raise CheckpointError(
            f"the autoencoder {path} has latents of {chosen.channels} channels, the weights are "
            f"for {channels}; choose another with --codec"
        )
    return chosen


def _latent_side(size: int, codec: CodecConfig) -> int:
    factor = build_codec(codec).factor
    if size % factor:
        raise CheckpointError(f"--size {size} is no multiple of {factor}, the autoencoder's factor")
    return size // factor


def _class_names(facts: Mapping[str, Any], config: NetworkConfig) -> tuple[str, ...]:
    names = tuple(facts.get("class_names", ()))
    return names if len(names) == config.classes else ()


def flat(certificate: Certificate) -> dict[str, Any]:
    """The certificate without nesting and without what is empty."""
    values = certificate.model_dump()
    values |= values.pop("comparison") or {}
    return {
        key: float(f"{value:.3g}") if isinstance(value, float) and math.isfinite(value) else value
        for key, value in values.items()
        if value not in ("", None)
    }
