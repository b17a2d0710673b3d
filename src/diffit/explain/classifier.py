"""What an image classifier is to the explanations: a function of images in [-1, 1].

A classifier resizes images and normalises them by its own mean and standard deviation inside, so
that noise, radii and attacks are all stated in the one unit of the library.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.errors import DataError, UsageError


class Classifier(Protocol):
    """A function from images to logits, and what is known of it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it looks at; others are resized to H x W."""

    @property
    def classes(self) -> int:
        """Number K of classes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, any H, any W) images in [-1, 1] to (B, K) logits."""


class Trace(NamedTuple):
    """The logits of a forward pass, and the attention that led to them."""

    logits: Tensor
    """(B, K)."""
    attentions: tuple[Tensor, ...]
    """One (B, heads, S, S) for each layer, the first layer first; row i is the attention paid by
    token i and sums to 1. The logits depend on these very tensors: gradients reach them."""


class Attentive(Classifier, Protocol):
    """A classifier that shows its attention.

    Its S tokens are ``prefix`` tokens that stand for no place of the image, the class token first,
    then those of the grid, row-major.
    """

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""

    @property
    def prefix(self) -> int:
        """Tokens before the image tokens: 1 for a class token, 0 if there is none."""

    def traced(self, images: Tensor) -> Trace:
        """What `__call__` computes, with the attention of every layer."""


def is_attentive(classifier: Classifier) -> TypeGuard[Attentive]:
    """Whether a classifier shows its attention."""
    return all(hasattr(classifier, name) for name in ("grid", "prefix", "traced"))


def need_attention(classifier: Classifier) -> Attentive:
    """The classifier itself; UsageError if it shows no attention."""
    if not is_attentive(classifier):
        raise UsageError(
            f"{describe(classifier)} shows no attention, so that only predictions and maps from "
            "gradients (gradient-input, integrated-gradients, smoothgrad) are possible; use a ViT "
            "of `diffit explain train-classifier`, or a ViT, DeiT or DINOv2 of transformers, "
            'loaded with attn_implementation="eager" if you loaded it yourself'
        )
    return classifier


def as_classifier(
    function: Callable[[Tensor], Tensor],
    *,
    shape: tuple[int, int, int],
    class_names: Sequence[str],
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    name: str = "this classifier",
) -> Classifier:
    """Any function of images as a `Classifier`, for predictions and maps from gradients.

    Args:
        function: (B, C, H, W) images of ``shape``, normalised, to (B, K) logits.
        shape: (C, H, W) that it takes.
        class_names: K names.
        mean, std: what it was trained with, for images in [0, 1], one number or one a channel; the
            default hands images on in [-1, 1].
        name: what messages call it.
    """
    return _Wrapped(function, shape, tuple(class_names), tuple(mean), tuple(std), name)


class _Wrapped:
    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int],
        class_names: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        name: str,
    ) -> None:
        check_normalisation(mean, std, channels=shape[0])
        self.function = function
        self.shape = shape
        self.class_names = class_names
        self.mean, self.std = mean, std
        self.name = name

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def __call__(self, images: Tensor) -> Tensor:
        seen = normalise(fit(images, self.shape), self.mean, self.std)
        logits = self.function(seen)
        if logits.shape != (len(images), self.classes):
            raise DataError(
                f"{self.name} gave {tuple(logits.shape)} for {len(images)} images; logits are "
                f"(images, classes), and it has {self.classes} class names"
            )
        return logits


def fit(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images at the size that a classifier looks at, by antialiased bicubic interpolation.

    Args:
        images: (B, C, H, W) in [-1, 1]; those of the right size are handed on as they are.
        shape: (C, height, width) wanted.

    Returns:
        (B, C, height, width); differentiable.

    Raises:
        DataError: the channels differ, or this is no batch of images.
    """
    channels, height, width = shape
    if images.ndim != 4 or images.shape[1] != channels:
        raise DataError(
            f"the classifier looks at images of {channels} channels, but was given "
            f"{tuple(images.shape)}; convert the images, or use another classifier"
        )
    if images.shape[2:] == (height, width):
        return images
    wide = images if images.dtype == torch.float64 else images.float()
    # What lies outside [-1, 1] stays there: the noise of smoothing must not be cut.
    return F.interpolate(wide, (height, width), mode="bicubic", antialias=True).to(images)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x01 - mean) / std of images x = 2 x01 - 1, without leaving [-1, 1] first.

    ``mean`` and ``std`` hold one number, or one for each channel; 0.5 and 0.5 change nothing.
    """
    centre = images.new_tensor([2 * value - 1 for value in mean])[:, None, None]
    spread = images.new_tensor([2 * value for value in std])[:, None, None]
    return (images - centre) / spread


def check_normalisation(mean: Sequence[float], std: Sequence[float], *, channels: int) -> None:
    """ValueError unless there is one number, or one for each channel, and each std is above 0."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} numbers; give 1, or {channels}, one each")
    if not all(value > 0 for value in std):
        raise ValueError(f"std is {tuple(std)}; each must be above 0")


def describe(classifier: Classifier) -> str:
    """What messages call a classifier."""
    return str(getattr(classifier, "name", type(classifier).__name__))
