"""Attacks on one's own classifiers, to evaluate how robust predictions and explanations are.

Each is projected gradient ascent (Madry et al., arXiv:1706.06083): from a random place in a ball
around the image, steps along the gradient of an objective, each back into the ball and into the
range of pixels. The objectives: the loss of the label; the loss of the label behind noise and
denoiser, in expectation over the noise (arXiv:1906.04584, arXiv:1707.07397); the top of an
explanation pushed out (arXiv:1710.10547); the divergence of an explanation. Two controls move at
random. Nothing of an attack depends on the other images of a batch, but for last digits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from diffit import draws
from diffit.config import Settings
from diffit.errors import DataError, UsageError
from diffit.explain.attribution import get_method, token_maps
from diffit.explain.attribution.maps import positive_share
from diffit.explain.ball import Ball, Norm
from diffit.explain.classifier import Classifier, describe
from diffit.explain.measures.robustness import tokens_of, top
from diffit.explain.smoothing import Smoothing
from diffit.explain.units import Units, check_images, to_pm1

Objective = Callable[[Tensor, int], Tensor]
"""(x, step) to (B,) values that the attack raises, each of its own image alone."""

FLOOR = 1e-12
"""Shares below it count as it: the logarithm of 0 has no gradient."""


class AttackConfig(Settings):
    """What an attack wants, how far it may go, and how hard it tries."""

    name: Literal["pgd", "adaptive", "push-out", "kl", "uniform", "gaussian"] = "pgd"
    """pgd: another label. adaptive: another label behind noise and denoiser. push-out: the most
    relevant tokens lose their relevance. kl: any other explanation. uniform, gaussian: random
    noise in the same ball, for comparison."""
    norm: Norm = "linf"
    eps: float = Field(gt=0)
    """Radius of the ball."""
    units: Units
    """01: eps is for pixels in [0, 1]; pm1: for pixels in [-1, 1]."""
    steps: int = Field(default=10, gt=0)
    step: float = Field(default=0.2, gt=0)
    """Length of a step, as a share of eps."""
    seed: int = 0
    """Of the random start, and of all noise."""
    method: str = "raw-attention"
    """The explanation that push-out and kl attack."""
    share: float = Field(default=0.25, gt=0, le=1)
    """Share of the tokens that push-out pushes out."""
    copies: int = Field(default=16, gt=0)
    """Noisy copies of an image in each step of the adaptive attack, fresh ones every time."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.norm == "linf" and self.ball.eps >= 2:
            raise ValueError(
                f"eps {self.eps:g} in units {self.units!r} reaches every image there is; the "
                "literature's 8/255 is 0.0314 in units '01'"
            )
        get_method(self.method)
        return self

    @property
    def ball(self) -> Ball:
        """Where the attacked image must lie."""
        return Ball(self.norm, to_pm1(self.eps, self.units))


def attack(
    config: AttackConfig,
    classifier: Classifier,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    smoothing: Smoothing | None = None,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """Attack images.

    Args:
        config: which attack, how far, how hard.
        classifier: what is attacked; its gradients are needed but for the random controls.
        images: (B, C, H, W) in [-1, 1], on the device of the classifier.
        labels: (B,) true class, or the class whose explanation is attacked; by default what the
            classifier says of the images.
        smoothing: how copies are made noisy and clean again, for the adaptive attack, which takes
            its noise and denoiser but goes through the denoiser once.
        numbers: which image of a data set each one is; draws follow from it. 0, 1, ... by default.

    Returns:
        (B, C, H, W) in [-1, 1], within the ball around ``images`` up to rounding.

    Raises:
        UsageError: the classifier gives no gradient, or lacks what the explanation needs.
        DataError: the images are no such images, or a gradient is not finite.
    """
    check_images(images)
    images = images.clamp(-1, 1)
    numbers = list(range(len(images))) if numbers is None else numbers
    if config.name == "uniform":
        return config.ball.anywhere(
            images, seed=config.seed, numbers=numbers, purpose="attack uniform"
        )
    if config.name == "gaussian":
        noise = draws.normal(config.seed, numbers, "attack gaussian", images.shape[1:])
        return config.ball.project(images + config.ball.eps * noise.to(images), images)
    if labels is None:
        with torch.no_grad():
            labels = classifier(images).argmax(1)
    _check_labels(labels, len(images), classifier)
    objective = _objective(config, classifier, images, labels, smoothing, numbers)
    return ascend(
        objective, images, config.ball, steps=config.steps, step=config.step, seed=config.seed,
        numbers=numbers, who=describe(classifier),
    )  # fmt: skip


def ascend(
    objective: Objective,
    images: Tensor,
    ball: Ball,
    *,
    steps: int,
    step: float,
    seed: int,
    numbers: Sequence[int],
    who: str = "the objective",
) -> Tensor:
    """Projected gradient ascent from a random place of the ball; the last iterate.

    Args:
        objective: what is raised.
        images: (B, C, H, W) in [-1, 1].
        ball: around each of them.
        steps: how many.
        step: length of one, as a share of the ball's radius.
        seed, numbers: image b starts where (seed, numbers[b]) say.
        who: what messages call what gives no gradient.
    """
    x = ball.anywhere(images, seed=seed, numbers=numbers, purpose="attack start")
    for i in range(steps):
        rise = step * ball.eps * ball.steepest(_gradient(objective, x, i, who))
        x = ball.project(x + rise, images)
    return x


def label_odds(classifier: Classifier, labels: Tensor) -> Objective:
    """Log odds against the labels: a rising function of the cross entropy.

    Each step is the one that the cross entropy would take, but a certain prediction, whose cross
    entropy is flat to the last digit, has a slope too.
    """

    def objective(x: Tensor, step: int) -> Tensor:
        return odds_against(classifier(x), labels)

    return objective


def odds_against(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K) logits and (B,) labels to (B,) log((1 - p) / p) of the labels, in float64."""
    logits = logits.double()
    own = labels[:, None]
    rest = logits.scatter(1, own, -math.inf).logsumexp(1)
    odds: Tensor = rest - logits.gather(1, own)[:, 0]
    return odds


def smoothed_odds(
    classifier: Classifier,
    labels: Tensor,
    smoothing: Smoothing,
    *,
    copies: int,
    numbers: Sequence[int],
) -> Objective:
    """Log odds against the labels by their mean probability over noisy copies, denoised once.

    A rising function of the loss of arXiv:1906.04584; see `label_odds`.
    """
    once = replace(smoothing, path=None, clip=False)

    def objective(x: Tensor, step: int) -> Tensor:
        span = range(step * copies, (step + 1) * copies)
        noise = [smoothing.noise(tuple(x.shape[1:]), int(n), "attack", span) for n in numbers]
        noisy = x[:, None] + smoothing.sigma * torch.stack(noise).to(x)
        shown = once.shown(noisy.flatten(0, 1))
        if smoothing.clip and smoothing.denoise is not None:
            # Clipped on the way forth but not back (arXiv:1802.00420): the slope of a clipped
            # pixel is 0, and most of a black background is clipped.
            shown = shown + (shown.clamp(-1, 1) - shown).detach()
        odds = odds_against(classifier(shown), labels.repeat_interleave(copies))
        odds = odds.reshape(len(x), copies)
        # log of the sum of 1 - p, minus log of the sum of p.
        return F.logsigmoid(odds).logsumexp(1) - F.logsigmoid(-odds).logsumexp(1)

    return objective


def push_out(explain: Callable[[Tensor], Tensor], images: Tensor, *, share: float) -> Objective:
    """Minus what is left of the relevance of the images' own most relevant tokens.

    Args:
        explain: images to (B, n) shares, differentiable.
        images: those whose top is pushed out.
        share: of the tokens, that make the top.
    """
    with torch.no_grad():
        before = explain(images)
    chosen = top(before, tokens_of(share, before.shape[1]))

    def objective(x: Tensor, step: int) -> Tensor:
        return -(explain(x) * chosen).sum(1)

    return objective


def divergence(explain: Callable[[Tensor], Tensor], images: Tensor) -> Objective:
    """KL divergence of the explanation of x from that of the images; arguments as `push_out`."""
    with torch.no_grad():
        before = explain(images)

    def objective(x: Tensor, step: int) -> Tensor:
        ratio = before.clamp_min(FLOOR).log() - explain(x).clamp_min(FLOOR).log()
        return (before * ratio).sum(1)

    return objective


def _objective(
    config: AttackConfig,
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    smoothing: Smoothing | None,
    numbers: Sequence[int],
) -> Objective:
    if config.name == "pgd":
        return label_odds(classifier, labels)
    if config.name == "adaptive":
        if smoothing is None:
            raise UsageError(
                "the adaptive attack goes through noise and denoiser; say which with sigma and "
                "denoiser, or attack the classifier alone with pgd"
            )
        own = replace(smoothing, seed=config.seed)
        return smoothed_odds(classifier, labels, own, copies=config.copies, numbers=numbers)

    def explain(x: Tensor) -> Tensor:
        maps = token_maps(config.method, classifier, x, labels, create_graph=x.requires_grad)
        return positive_share(maps)

    if config.name == "push-out":
        return push_out(explain, images, share=config.share)
    return divergence(explain, images)


def _check_labels(labels: Tensor, count: int, classifier: Classifier) -> None:
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise DataError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; give int64 ({count},), one class "
            "for each image"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classifier.classes:
        raise DataError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, but "
            f"{describe(classifier)} knows classes 0 to {classifier.classes - 1}"
        )


def _gradient(objective: Objective, x: Tensor, step: int, who: str) -> Tensor:
    """(B, C, H, W) gradient of each image's own value."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = objective(x, step).sum()
    found = None
    if value.requires_grad:
        found = torch.autograd.grad(value, x, allow_unused=True)[0]
    if found is None:
        raise UsageError(
            f"{who} gives no gradient with respect to the image, which this attack follows; "
            "attack a network of PyTorch, or take the controls uniform and gaussian"
        )
    bad = (~found.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise DataError(
            f"the gradient of image {int(bad[0])} of the batch is not finite in step {step}; the "
            "weights are damaged, or the precision is too low"
        )
    return found
