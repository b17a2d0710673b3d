"""Distillation: a model learns what a teacher of the same data estimates (arXiv:1503.02531)."""

from dataclasses import dataclass

import torch

from diffit.checkpoint import load
from diffit.codecs import CodecConfig
from diffit.diffusion.denoiser import Denoiser, over
from diffit.diffusion.loss import Lesson, noisy
from diffit.distributed import double
from diffit.errors import CheckpointError, ConfigError
from diffit.generation import refuse_restoring
from diffit.model import Model
from diffit.training.inputs import Inputs
from diffit.training.settings import RunConfig

SHARE = 0.5
"""How much of the loss is the distance to the teacher, where nothing is said."""


@dataclass(frozen=True)
class Teacher:
    """A trained model, frozen, and how much of the loss the distance to it is.

    It may have another network and another formulation; noise levels beyond those that it knows
    it answers as the nearest of them.
    """

    model: Model
    share: float

    @property
    def described(self) -> str:
        """Who teaches, for the console."""
        source = self.model.provenance
        return f"teacher: {source['checkpoint']} ({source['weights']}), {self.share:g} of the loss"

    @torch.no_grad()
    def lesson(self, student: Denoiser, inputs: Inputs) -> Lesson:
        """What the student's network should say if the teacher's estimate were the clean image."""
        sigma = inputs.sigma.to(double(inputs.sigma.device))
        # In float64, since the scalings divide by the noise level.
        x = noisy(inputs.clean, inputs.noise, sigma).to(double(inputs.clean.device))
        clean = self.model.denoiser(x, sigma, inputs.label, augment=inputs.augment)
        scalings = student.formulation.scalings(sigma)
        raw = (clean - over(scalings.skip, x) * x) / over(scalings.out, x)
        return Lesson(raw.to(inputs.clean.dtype), self.share)


def open_teacher(config: RunConfig, device: torch.device) -> Teacher | None:
    """The teacher that a run names, None if it names none; ConfigError if it does not fit,
    CheckpointError if its weights are not finite."""
    train = config.train
    if not train.teacher:
        return None
    model = load(train.teacher, device=device)
    refuse_restoring(model)
    _refuse_other_data(model, config)
    if not all(bool(weight.isfinite().all()) for weight in model.network.parameters()):
        raise CheckpointError(
            f"train.teacher {train.teacher} has weights that are not finite; take another one"
        )
    model.network.eval()
    return Teacher(model, SHARE if train.teacher_share is None else train.teacher_share)


def _refuse_other_data(model: Model, config: RunConfig) -> None:
    """ConfigError unless a teacher can be told all that the student is told."""
    ours, theirs = config.model, model.config
    name = f"train.teacher {config.train.teacher}"
    if theirs.network.shape != ours.network.shape:
        raise ConfigError(
            f"{name} takes {_sized(theirs.network.shape)}, but model.network "
            f"{_sized(ours.network.shape)}; they must agree"
        )
    if _space(theirs.codec) != _space(ours.codec):
        raise ConfigError(f"{name} has another codec than this model; they must agree")
    if (theirs.network.classes, theirs.class_names) != (ours.network.classes, ours.class_names):
        raise ConfigError(
            f"{name} knows {_listed(theirs.network.classes, theirs.class_names)}, but this model "
            f"{_listed(ours.network.classes, ours.class_names)}; they must agree"
        )
    if ours.network.classes and config.train.label_dropout and not theirs.network.null_class:
        raise ConfigError(f"{name} has learned no null class; set train.label_dropout 0")
    if config.data.augment and not getattr(theirs.network, "augment", False):
        raise ConfigError(
            f"{name} cannot be told what was done to an image; set data.augment 0, or take a "
            "teacher with network.augment"
        )


def _space(codec: CodecConfig) -> dict[str, object]:
    """What a codec says of its space; the same autoencoder may lie in another place."""
    return codec.model_dump(exclude={"path"})


def _sized(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{height} x {width} of {channels} channel{'s' if channels > 1 else ''}"


def _listed(classes: int, names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{classes} classes" + (f" ({shown})" if names else "")
