"""How well explanations find the object: as segmentations, against masks drawn by people.

The protocol of Chefer et al. (arXiv:2012.09838, section 4) on the data of Guillaumin et al. (IJCV
2014): an image's foreground is where its map exceeds the map's own mean.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit.errors import DataError


class Segmentation(NamedTuple):
    """Figures of a set of images, all in [0, 1].

    Attributes:
        images: how many there are.
        pixel_accuracy: share of the labelled pixels, of all images, that are right.
        iou: intersection over union of background and foreground, each over all images.
        miou: the mean of the two.
        ap: average precision of each image.
        map: its mean over the images.
        f1: F1 of the foreground of each image.
        mf1: its mean over the images.
    """

    images: int
    pixel_accuracy: float
    iou: tuple[float, float]
    miou: float
    ap: tuple[float, ...]
    map: float
    f1: tuple[float, ...]
    mf1: float


class SegmentationTotals:
    """Counts over a stream of images, of which the figures are made at the end."""

    def __init__(self) -> None:
        self._correct = self._labelled = 0
        self._both = torch.zeros(2, dtype=torch.int64)
        self._either = torch.zeros(2, dtype=torch.int64)
        self._ap: list[float] = []
        self._f1: list[float] = []

    def add(self, maps: Tensor, targets: Tensor) -> None:
        """Count (B, H, W) maps against (B, H, W) targets: 1 foreground, 0 background, -1 unknown.

        DataError if sizes or values are not these, or if nothing of an image is labelled.
        """
        _check(maps, targets)
        for relevance, target in zip(maps.double().cpu(), targets.cpu(), strict=True):
            self._add(scaled(relevance), target)

    def _add(self, relevance: Tensor, target: Tensor) -> None:
        known = target >= 0
        found, truth = (relevance > relevance.mean())[known], target[known] == 1
        self._correct += int((found == truth).sum())
        self._labelled += int(known.sum())
        hits = torch.stack([(~found & ~truth).sum(), (found & truth).sum()])
        union = torch.stack([(~found | ~truth).sum(), (found | truth).sum()])
        self._both += hits
        self._either += union
        # A pixel counts twice, as background scored 1 - map and as foreground scored map.
        scores = torch.cat([1 - relevance[known], relevance[known]])
        self._ap.append(average_precision(scores, torch.cat([~truth, truth])))
        marked = int(found.sum()) + int(truth.sum())
        self._f1.append(2 * int(hits[1]) / marked if marked else 1.0)

    def result(self) -> Segmentation:
        """The figures of all images so far; DataError if there are none."""
        if not self._ap:
            raise DataError("no image with a mask was given; segmentation needs at least one")
        # Where neither masks nor maps have a class there is nothing to get wrong.
        pairs = zip(self._both.tolist(), self._either.tolist(), strict=True)
        background, foreground = (both / either if either else 1.0 for both, either in pairs)
        return Segmentation(
            images=len(self._ap),
            pixel_accuracy=self._correct / self._labelled,
            iou=(background, foreground),
            miou=(background + foreground) / 2,
            ap=tuple(self._ap),
            map=sum(self._ap) / len(self._ap),
            f1=tuple(self._f1),
            mf1=sum(self._f1) / len(self._f1),
        )


def segmentation(maps: Tensor, targets: Tensor) -> Segmentation:
    """The figures of (B, H, W) maps against masks, see `SegmentationTotals`."""
    totals = SegmentationTotals()
    totals.add(maps, targets)
    return totals.result()


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) masks to (B, height, width), by the nearest pixel: no label is mixed of others."""
    return F.interpolate(masks[:, None].double(), size, mode="nearest-exact")[:, 0].to(masks.dtype)


def scaled(relevance: Tensor) -> Tensor:
    """A map brought to [0, 1]; zeros if it is constant."""
    low, high = torch.aminmax(relevance)
    return (relevance - low) / (high - low) if high > low else torch.zeros_like(relevance)


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Sum over the thresholds of the rise in recall times the precision; equal scores fall as one.

    Args:
        scores: (N,) higher means more likely true.
        truth: (N,) bool. Where nothing is true, the precision is 0 by convention.
    """
    positives = int(truth.sum())
    if positives == 0:
        return 0.0
    order = scores.argsort(descending=True, stable=True)
    hits = truth[order].double().cumsum(0)
    ordered = scores[order]
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]  # a threshold lets in all places of one score
    hits, count = hits[last], torch.arange(1, len(scores) + 1, dtype=torch.float64)[last]
    rise = torch.diff(hits, prepend=hits.new_zeros(1)) / positives
    return float((rise * hits / count).sum())


def _check(maps: Tensor, targets: Tensor) -> None:
    if maps.ndim != 3 or maps.shape != targets.shape:
        raise DataError(
            f"maps are {tuple(maps.shape)} and masks {tuple(targets.shape)}; both must be "
            "(images, height, width) of one size: `upsample` the maps, or `resize_masks`"
        )
    if not bool(maps.isfinite().all()):
        raise DataError("a map holds values that are not finite; no figure can be made of it")
    values = set(torch.unique(targets).tolist())
    if not values <= {-1, 0, 1}:
        raise DataError(
            f"a mask holds {sorted(values - {-1, 0, 1})[0]:g}; masks say 1 for the object, 0 for "
            "the rest and -1 where it is unknown"
        )
    unknown = (targets < 0).flatten(1).all(1).nonzero()
    if len(unknown):
        raise DataError(
            f"all of mask {int(unknown[0])} is unknown; leave the image out, nothing of it can be "
            "right or wrong"
        )
