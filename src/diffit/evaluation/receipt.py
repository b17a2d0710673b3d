"""What approximate sampling costs and gains: the same seeds drawn exactly and approximately."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from diffit.config import Settings
from diffit.data.example import Follow
from diffit.errors import UsageError
from diffit.evaluation.features import Extractor, open_features
from diffit.generation import Labels, draw, label_tensor, units
from diffit.model import Model
from diffit.sampling import SamplingConfig


class Receipt(Settings):
    """How far approximate images are from the exact ones of the same seeds."""

    pairs: int
    """Seeds that were drawn both ways."""
    rms: float
    """Root mean square difference of a pixel, in levels of 0..255."""
    features: str
    """The extractor of the next figure."""
    feature_distance: float
    """Mean distance of a pair's features, where two exact images of other seeds are 1 apart."""
    exact_seconds: float
    approximate_seconds: float
    speedup: float
    """Exact over approximate seconds, measured in turn on this machine."""
    device: str

    def sentence(self) -> str:
        """All of it in one line."""
        return (
            f"approximate: {self.speedup:.2f} times as fast; over {self.pairs} seeds pixels differ "
            f"by {self.rms:.2f} of 255 (rms), features ({self.features}) by "
            f"{self.feature_distance:.3f} of the distance between two images"
        )


def measure(
    model: Model,
    seeds: Sequence[int],
    *,
    labels: Labels,
    settings: SamplingConfig,
    reference: Model | None = None,
    follow: Follow = iter,
) -> Receipt:
    """Draw the seeds with ``settings`` and with their exact form, and compare.

    Args:
        model, seeds, labels, reference: as for `diffit.generation.generate`; at least two seeds.
        settings: approximate ones.
        follow: told how many units are drawn.

    Raises:
        UsageError: the samples are not finite.
    """
    label = label_tensor(model, labels, len(seeds))
    planned = list(units(len(seeds), settings.unit))
    images: dict[bool, list[Tensor]] = {False: [], True: []}
    seconds = {False: 0.0, True: 0.0}
    for number in follow(range(len(planned))):
        places, kept = planned[number]
        of_unit = [seeds[i] for i in places], None if label is None else label[places]
        for exact in (True, False):
            began = time.perf_counter()
            how = settings.exact() if exact else settings
            try:
                drawn = draw(model, *of_unit, how, reference=reference)
            except ValueError as error:
                raise UsageError(f"{error}; try other settings of the sampler") from None
            seconds[exact] += time.perf_counter() - began
            images[exact].append(drawn[:kept])
    exact_images, other_images = torch.cat(images[True]), torch.cat(images[False])
    extractor = available_features(exact_images.shape[1])
    return Receipt(
        pairs=len(seeds),
        rms=round((exact_images.double() - other_images.double()).square().mean().sqrt().item(), 4),
        features=extractor.name,
        feature_distance=round(paired_distance(exact_images, other_images, extractor), 5),
        exact_seconds=round(seconds[True], 3),
        approximate_seconds=round(seconds[False], 3),
        speedup=round(seconds[True] / seconds[False], 3),
        device=model.device.type,
    )


def available_features(channels: int) -> Extractor:
    """Inception where its weights are on this machine, else the classifier that suits."""
    try:
        return open_features("inception")
    except UsageError:
        return open_features("digits-cnn" if channels == 1 else "patches-cnn")


def paired_distance(exact: Tensor, other: Tensor, extractor: Extractor) -> float:
    """Mean distance of the features of exact[i] and other[i], over that of two exact images.

    Args:
        exact, other: (N, C, H, W) uint8, N at least 2.
        extractor: see `diffit.evaluation.features`.
    """
    first, second = extractor(exact).pool.double(), extractor(other).pool.double()
    spread = torch.pdist(first).mean()
    # Images that are all the same have no spread to measure by.
    return float((first - second).norm(dim=1).mean() / spread.clamp(min=1e-12))
