"""NIQE: how natural an image's statistics are, without a reference (Mittal et al., SPL 2013).

The distance of an image's features to those of good photographs. The published model of such
photographs is not part of this package: a model is fitted on images of one's choice, and figures
are named after them, `niqe-fitted(kodak24)`; those of different models do not compare.
"""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffit.data.images import write_atomic
from diffit.errors import DataError
from diffit.evaluation.images import luma
from diffit.evaluation.resize import matlab_bicubic, resize_sides

BLOCK = 96
"""Side of a block at full size; at half size it is half of that."""
FEATURES = 36
SHARP = 0.75
"""Blocks of good photographs count if they are so sharp, relative to the sharpest of the image."""
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class NiqeModel:
    """Features of good photographs.

    Attributes:
        source: which photographs.
        mean: (36,) float64.
        covariance: (36, 36) float64.
        blocks: how many blocks it was fitted on.
    """

    source: str
    mean: Tensor
    covariance: Tensor
    blocks: int

    @property
    def name(self) -> str:
        """What figures of this model are called."""
        return f"niqe-fitted({self.source})"


def niqe(images: Tensor, model: NiqeModel) -> Tensor:
    """(B,) distances of (B, C, H, W) images, uint8 or floats in [0, 1]; lower is more natural."""
    values = []
    for image in images:
        found, _ = block_features(image)
        if len(found) < 2:
            raise DataError(
                f"NIQE needs images of two or more blocks of {BLOCK} x {BLOCK} pixels, these have "
                f"{image.shape[1]} x {image.shape[2]}; measure larger ones"
            )
        apart = model.mean - found.mean(0)
        pooled = (model.covariance + found.T.cov()) / 2
        values.append((apart @ torch.linalg.pinv(pooled, hermitian=True) @ apart).clamp(0).sqrt())
    return torch.stack(values)


def fit_niqe(images: Iterable[Tensor], source: str) -> NiqeModel:
    """A model of good photographs (C, H, W), which may differ in size: their sharp blocks alone."""
    kept = []
    for image in images:
        found, sharpness = block_features(image)
        if len(found):
            kept.append(found[sharpness > SHARP * sharpness.max()])
    blocks = torch.cat(kept) if kept else torch.zeros(0, FEATURES)
    if len(blocks) <= FEATURES:
        raise DataError(
            f"{source} has {len(blocks)} sharp blocks of {BLOCK} x {BLOCK} pixels, and NIQE's "
            f"model of {FEATURES} features needs more than {FEATURES}; give more or larger images"
        )
    return NiqeModel(source, blocks.mean(0), blocks.T.cov(), len(blocks))


def save_niqe(path: Path, model: NiqeModel) -> None:
    """Write a model as npz, without pickle."""
    buffer = BytesIO()
    np.savez(
        buffer,
        source=np.array(model.source),
        mean=model.mean.numpy(),
        covariance=model.covariance.numpy(),
        blocks=np.array(model.blocks),
    )
    write_atomic(path, buffer.getvalue())


def load_niqe(path: Path) -> NiqeModel:
    """A model that `save_niqe` wrote; DataError if the file is none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (
                torch.from_numpy(file[key].astype(np.float64)) for key in ("mean", "covariance")
            )
            model = NiqeModel(str(file["source"]), mean, covariance, int(file["blocks"]))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; fit a model of NIQE first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, EOFError):
        raise DataError(f"{path} is no model of NIQE, or is damaged; fit it again") from None
    fits = mean.shape == (FEATURES,) and covariance.shape == (FEATURES, FEATURES)
    if not fits or not (mean.isfinite().all() and covariance.isfinite().all()):
        raise DataError(f"{path} is no model of NIQE, or is damaged; fit it again")
    return model


def block_features(image: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 36) features of the whole blocks of a (C, H, W) image, and their (N,) sharpness."""
    value = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    if not value.isfinite().all():
        raise DataError("the image holds values that are not finite")
    value = value.clamp(0, 1)
    grey = luma(value[None]) if len(value) == 3 else 255 * value[None, :1]
    rows, columns = (side // BLOCK for side in grey.shape[2:])
    if not rows * columns:
        return torch.zeros(0, FEATURES, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    grey = grey.round()[..., : rows * BLOCK, : columns * BLOCK]
    parts, sharpness = [], torch.zeros(0)
    for side in (BLOCK, BLOCK // 2):
        normal, deviation = normalised(grey)
        blocks = _cut(normal, side)
        parts.append(torch.stack([_features(block) for block in blocks]))
        if side == BLOCK:
            sharpness = _cut(deviation, side).flatten(1).mean(1)
        half = (grey.shape[2] // 2, grey.shape[3] // 2)
        grey = resize_sides(grey, half, matlab_bicubic)
    return torch.cat(parts, 1), sharpness


def normalised(grey: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1, H, W) in 0..255: without its local mean, over its deviation + 1; and the deviation."""
    place = torch.arange(7, dtype=grey.dtype) - 3
    line = (-0.5 * (place / (7 / 6)) ** 2).exp()
    line = (line / line.sum()).reshape(1, 1, 1, 7)

    def smoothed(x: Tensor) -> Tensor:
        wide = F.pad(x, (3, 3, 3, 3), mode="replicate")
        return F.conv2d(F.conv2d(wide, line), line.transpose(2, 3))

    mean = smoothed(grey)
    deviation = (smoothed(grey**2) - mean**2).abs().sqrt()
    return (grey - mean) / (deviation + 1), deviation


def _cut(image: Tensor, side: int) -> Tensor:
    """(1, 1, H, W) to (N, side, side) whole blocks."""
    return image[0, 0].unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)


def _features(block: Tensor) -> Tensor:
    """18 numbers: shape and width of the values, and of their products with four neighbours."""
    alpha, left, right = asymmetric_gaussian(block)
    values = [alpha, (left + right) / 2]
    for shift in _SHIFTS:
        alpha, left, right = asymmetric_gaussian(block * block.roll(shift, (0, 1)))
        mean = (right - left) * (torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha)).exp()
        values += [alpha, mean, left, right]
    return torch.stack(values)


def asymmetric_gaussian(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape alpha and the scales left and right of 0, by moments (Lasmar et al., ICIP 2009)."""
    square = x.square()
    left, right = (_root_mean(square[side]) for side in (x < 0, x > 0))
    ratio = left / right.clamp(min=1e-12)
    peak = x.abs().mean() ** 2 / square.mean().clamp(min=1e-12)
    peak = peak * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes = torch.arange(0.2, 10.001, 0.001, dtype=torch.float64)
    log = 2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    alpha = shapes[(log.exp() - peak).abs().argmin()]
    scale = ((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2).exp()
    return alpha, left * scale, right * scale


def _root_mean(square: Tensor) -> Tensor:
    """Root of the mean; 0 of nothing, as in a block of one colour."""
    return square.mean().sqrt() if square.numel() else square.new_zeros(())
