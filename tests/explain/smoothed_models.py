"""Small classifiers whose smoothed selves are formulas; also opened by other processes."""

import math
import os

import torch
from torch import Tensor

from diffit.errors import CheckpointError
from diffit.explain.classifier import Classifier, as_classifier
from diffit.explain.smoothing import Smoothed, Smoothing
from oracle import Gaussian

SHAPE = (1, 4, 4)
NORMAL = torch.linspace(-1, 1, 16) / torch.linspace(-1, 1, 16).norm()
"""Unit normal of the plane between the two classes."""


def halves(offset: float = 0.0) -> Classifier:
    """Class 1 on the side of the plane that its normal points to, class 0 on the other."""

    def logits(x: Tensor) -> Tensor:
        side = x.flatten(1) @ NORMAL.to(x) - offset
        return torch.stack([-side, side], 1)

    return as_classifier(logits, shape=SHAPE, class_names=("below", "above"))


def at(distance: float) -> Tensor:
    """An image at this distance from the plane through 0."""
    return (distance * NORMAL).reshape(SHAPE)


def shares(images: Tensor, labels: Tensor) -> Tensor:
    """Maps of 4 tokens: softmax of the rows' sums, turned round for class 0."""
    rows = images.flatten(1).reshape(-1, 4, 4).sum(2)
    return (rows * (2 * labels - 1)[:, None] + torch.arange(4)).softmax(1)


def opened(sigma: float, unit: int = 16) -> Smoothed:
    """What a process is told to open."""
    smoothing = Smoothing(sigma, Gaussian(0.0, 0.5), seed=3, unit=unit, clip=False)
    return Smoothed(halves(), smoothing, shares)


def deadly() -> Smoothed:
    """A classifier that ends the process that asks it."""

    def end(x: Tensor) -> Tensor:
        os._exit(1)

    return Smoothed(as_classifier(end, shape=SHAPE, class_names="ab"), Smoothing(0.5))


def missing() -> Smoothed:
    """What is no longer there when a process wants to open it."""
    raise CheckpointError("the denoiser has gone")


def chance(distance: float, sigma: float) -> float:
    """Probability that a noisy copy lies on the image's own side."""
    return 0.5 * (1 + math.erf(distance / sigma / math.sqrt(2)))
