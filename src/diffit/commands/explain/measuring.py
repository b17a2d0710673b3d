"""What `diffit explain evaluate` measures of a few images, in plain numbers that JSON can keep."""

import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffit.commands.explain.arguments import Opened, Parts, explainer, grid_of, smooth
from diffit.commands.explain.examples import Example, to_tensor
from diffit.explain.attacks import AttackConfig
from diffit.explain.attacks import attack as attack_images
from diffit.explain.attribution import to_grid, upsample
from diffit.explain.bounds import Moments
from diffit.explain.measures.perturbation import Order, perturbation_test
from diffit.explain.region import certify_estimate
from diffit.explain.results import as_json
from diffit.explain.smoothed import certify
from diffit.explain.smoothing import Explain, Smoothed, normalised

ORDERS: tuple[Order, ...] = ("positive", "negative")
Attack = Literal["pgd", "push-out", "kl"]
"""Attacks on the plain classifier, or on its explanation."""

OTHER_SEED = 1
"""Added to the seed for attacked images: maps that are compared share no noise, since that would
flatter their overlap."""


class Way(NamedTuple):
    """One way of looking at an image.

    Attributes:
        name: in tables and pictures.
        level: sigma for pixels in [-1, 1]; 0 shows the classifier the image itself.
        denoised: whether the noisy copies pass the denoiser.
    """

    name: str
    level: float = 0.0
    denoised: bool = False

    @property
    def key(self) -> str:
        """Its name in file names."""
        return self.name.replace(" ", "-")


PLAIN = Way("plain")


class Look(NamedTuple):
    """What one way of looking says of one image.

    Attributes:
        label: the class that most copies are taken for.
        maps: for each method the moments of its maps over the copies.
    """

    label: int
    maps: dict[str, Moments]


class Subject(NamedTuple):
    """What is measured: the parts, how they are used, and the methods of explanation by name."""

    opened: Opened
    parts: Parts
    explain: dict[str, Explain]

    @classmethod
    def of(cls, opened: Opened, parts: Parts, methods: Sequence[str]) -> "Subject":
        """Ready to measure; UsageError for methods that the classifier does not bear."""
        classifier = opened.classifier
        return cls(opened, parts, {m: explainer(classifier, m, parts.grid) for m in methods})

    def smoothed(self, way: Way, seed: int = 0) -> Smoothed:
        """The classifier behind the noise of a way."""
        seed += self.parts.seed
        return smooth(self.opened, self.parts, way.level, denoised=way.denoised, seed=seed)

    def images(self, examples: Sequence[Example]) -> Tensor:
        """(B, C, H, W) in [-1, 1], where the classifier is."""
        return to_tensor(examples).to(self.opened.device)


def look(
    subject: Subject, way: Way, image: Tensor, number: int, label: int, *, m: int, seed: int = 0
) -> Look:
    """Look at a (C, H, W) image in one way, ``m`` noisy copies of it or the image itself."""
    counts = torch.zeros(subject.opened.classifier.classes, dtype=torch.int64)
    total, squares = dict[str, Any](), dict[str, Any]()
    m = m if way.level else 1
    unit = subject.parts.unit
    for copies in (range(first, min(first + unit, m)) for first in range(0, m, unit)):
        shown = _shown(subject, way, image, number, copies, seed)
        with torch.no_grad():
            logits = subject.opened.classifier(shown)
        counts += torch.bincount(logits.argmax(1), minlength=len(counts)).cpu()
        labels = torch.full((len(shown),), label, device=shown.device)
        for method, explain in subject.explain.items():
            share = normalised(explain(shown, labels).detach()).cpu().numpy()
            total[method] = total.get(method, 0) + share.sum(0)
            squares[method] = squares.get(method, 0) + (share**2).sum(0)
    maps = {name: _moments(total[name], squares[name], m) for name in total}
    return Look(int(counts.argmax()), maps)


def measure_attacked(
    subject: Subject,
    ways: Sequence[Way],
    examples: Sequence[Example],
    attacked: Tensor,
    *,
    m: int,
    seed: int,
) -> dict[str, Any]:
    """Labels, maps and perturbation tests of attacked images (or clean ones), in each way.

    Maps explain the true class: it is the same before and after the attack. Perturbation blanks
    pixels of the clean images in the order that the maps of the attacked ones give.
    """
    clean = subject.images(examples)
    labels = torch.tensor([example.label for example in examples], device=clean.device)
    found: dict[str, Any] = {"labels": {}, "maps": {}, "blanked": {}, "seconds": {}}
    for way in ways:
        started = time.process_time()
        looks = [
            look(subject, way, image, example.number, int(label), m=m, seed=seed)
            for image, example, label in zip(attacked, examples, labels, strict=True)
        ]
        found["seconds"][way.name] = (time.process_time() - started) / len(examples)
        found["labels"][way.name] = [one.label for one in looks]
        found["maps"][way.name] = {
            method: [one.maps[method].mean.tolist() for one in looks] for method in subject.explain
        }
        found["blanked"][way.name] = {
            method: _blanked(subject, clean, labels, maps)
            for method, maps in found["maps"][way.name].items()
        }
    return found


def measure_certified(
    subject: Subject, way: Way, examples: Sequence[Example], *, n0: int, n: int, alpha: float
) -> list[dict[str, Any]]:
    """The label certificate of each image, with its true label and the seconds it took."""
    smoothed, images = subject.smoothed(way), subject.images(examples)
    found = []
    for example, image in zip(examples, images, strict=True):
        started = time.monotonic()
        one = certify(smoothed, image, n0=n0, n=n, alpha=alpha, number=example.number)
        seconds = time.monotonic() - started
        found.append({**as_json(one), "true": example.label, "seconds": seconds})
    return found


def measure_radii(
    subject: Subject,
    way: Way,
    examples: Sequence[Example],
    keep: Sequence[tuple[int, float]],
    *,
    m: int,
    eta: float,
) -> list[dict[str, Any]]:
    """Radii of explanations: of the estimate as if it were exact, and with confidence 1 - eta."""
    found = []
    for example, image in zip(examples, subject.images(examples), strict=True):
        seen = look(subject, way, image, example.number, int(example.label or 0), m=m)
        for method, moments in seen.maps.items():
            for k, beta in keep:
                for confidence in (None, eta):
                    one = certify_estimate(
                        moments, k, beta, sigma=way.level, dimensions=image.numel(), eta=confidence
                    )
                    found.append({"number": example.number, "method": method, **as_json(one)})
    return found


def measure_adaptive(
    subject: Subject,
    way: Way,
    examples: Sequence[Example],
    eps: float,
    *,
    steps: int,
    copies: int,
    m: int,
) -> list[int]:
    """Labels, in one way, of images that were attacked through that very way."""
    attacked = attack(subject, examples, eps, steps=steps, way=way, copies=copies)
    return votes_of(subject, way, attacked, examples, m=m, seed=OTHER_SEED)


def votes_of(
    subject: Subject, way: Way, images: Tensor, examples: Sequence[Example], *, m: int, seed: int
) -> list[int]:
    """The label of each of (B, C, H, W) images in one way, without maps."""
    bare = subject._replace(explain={})
    return [
        look(bare, way, image, example.number, 0, m=m, seed=seed).label
        for image, example in zip(images, examples, strict=True)
    ]


def attack(
    subject: Subject,
    examples: Sequence[Example],
    eps: float,
    *,
    steps: int,
    name: Attack = "pgd",
    way: Way = PLAIN,
    copies: int = 1,
) -> Tensor:
    """Images attacked for their true label, or as they are if eps is 0.

    Args:
        subject: whose classifier is attacked.
        examples: the images.
        eps: largest change of a pixel, for pixels in [-1, 1].
        steps: gradient steps.
        name: what is attacked: the label, or its explanation by the subject's first method.
        way: `PLAIN` attacks the classifier alone; another one is attacked through its noise and
            denoiser.
        copies: noisy copies in each step, then.
    """
    images = subject.images(examples)
    if not eps:
        return images
    config = AttackConfig(
        name="adaptive" if way.level else name,
        method=next(iter(subject.explain)),
        eps=eps,
        units="pm1",
        steps=steps,
        seed=subject.parts.seed,
        copies=copies,
    )
    return attack_images(
        config,
        subject.opened.classifier,
        images,
        torch.tensor([example.label for example in examples], device=images.device),
        smoothing=subject.smoothed(way).smoothing if way.level else None,
        numbers=[example.number for example in examples],
    )


def _shown(
    subject: Subject, way: Way, image: Tensor, number: int, copies: range, seed: int
) -> Tensor:
    """What the classifier is shown: noisy copies, denoised or not, or the image itself."""
    if not way.level:
        return image[None]
    smoothing = subject.smoothed(way, seed).smoothing
    with torch.no_grad(), smoothing.computing(image.device):
        noisy = smoothing.noisy(image, number, "maps", copies)
        return smoothing.shown(noisy, number, "maps", copies)


def _moments(total: np.ndarray, squares: np.ndarray, m: int) -> Moments:
    mean = total / m
    return Moments(mean, np.maximum((squares - m * mean**2) / max(m - 1, 1), 0), m)


def _blanked(
    subject: Subject, clean: Tensor, labels: Tensor, maps: Sequence[Sequence[float]]
) -> dict[str, list[list[int]]]:
    """For both orders, whether each image is still classified rightly at each share of pixels."""
    grid = grid_of(subject.opened.classifier, subject.parts.grid)
    tokens = torch.tensor(maps, dtype=torch.float64, device=clean.device)
    height, width = clean.shape[2:]
    relevance = upsample(to_grid(tokens, grid), (height, width))
    return {
        order: perturbation_test(
            subject.opened.classifier, clean, relevance, labels, order=order
        ).correct.int().tolist()
        for order in ORDERS
    }  # fmt: skip
