"""One image of `diffit restore`: drawn, measured, and shown beside what it was made of."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffit.codecs import Pixels
from diffit.commands.restore_pictures import Frames, Panel, before_after, film, spread_panel
from diffit.commands.restore_problem import Problem, Setup, to_uint8
from diffit.data.images import to_png
from diffit.errors import UsageError
from diffit.evaluation.images import psnr, ssim
from diffit.model import Model
from diffit.restoration import Restoration, check_fits
from diffit.restoration.operators import Mask
from diffit.restoration.tiles import corners, seam
from diffit.restoring import (
    Watch,
    baseline,
    conditioned,
    is_latent,
    levels_of,
    over_tiles,
    restore,
    restore_trained,
    tile_overlap,
)

SAMPLES = 1000
"""Samples of one image at most, so that no two images share a seed."""
LEAST_FOR_SSIM = 11
"""Side of the window of SSIM."""

Tell = Callable[[float], None]
"""Told which part of an image is done."""


@dataclass(frozen=True)
class Work:
    """How each image of a folder is restored; see `diffit.commands.restore.Args`."""

    model: Model
    setup: Setup
    method: str
    options: Mapping[str, Any]
    steps: int | None
    samples: int
    seed: int
    label: int | None
    guidance: float
    overlap: int | None
    batch: int
    video: bool

    def check(self, problem: Problem) -> None:
        """UsageError if this problem cannot be solved so."""
        if problem.operator is None:
            if tuple(problem.y.shape[1:]) != self.setup.shape:
                raise UsageError(
                    f"the degraded image is {' x '.join(map(str, problem.y.shape[1:]))}, this "
                    f"model restores {' x '.join(map(str, self.setup.shape))}"
                )
            if self.guidance != 1:
                raise UsageError("a model that was trained to restore takes no guidance")
            conditioned(self.model, self.label)
            return
        check_fits(
            self.method,
            problem.operator,
            latent=is_latent(self.model),
            sigma_y=problem.sigma_y,
        )
        levels_of(self.model, self.method, self.steps)
        denoise = conditioned(self.model, self.label, self.guidance)
        if not is_latent(self.model):
            shape = problem.operator.shape
            over_tiles(denoise, self.model, shape, overlap=self.overlap)
            corners((shape[1], shape[2]), self._tile, tile_overlap(self.model, self.overlap))

    def restore(
        self, name: str, problem: Problem, place: int, tell: Tell
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The files of one image by their path in the folder, and its record."""
        started, frames = time.monotonic(), Frames()
        at_once = max(1, self.batch // self._tiles(problem))
        parts: list[Restoration] = []
        for first in range(0, self.samples, at_once):
            numbers = range(first, min(first + at_once, self.samples))
            watch = self._watch(numbers, tell, frames if self.video and not first else None)
            seeds = [self.seed + SAMPLES * place + k for k in numbers]
            parts.append(self._draw(problem, seeds, watch))
        samples = torch.cat([self._pixels(part.x) for part in parts])
        seconds = time.monotonic() - started
        files = self._files(name, problem, samples, frames.frames)
        return files, self._record(name, problem, samples, parts, seconds)

    def _draw(self, problem: Problem, seeds: Sequence[int], watch: Watch) -> Restoration:
        y = problem.y.expand(len(seeds), *problem.y.shape[1:])
        if problem.operator is None:
            return restore_trained(self.model, y, seeds, steps=self.steps, label=self.label)
        return restore(
            self.model,
            y,
            problem.operator,
            seeds,
            method=self.method,
            options=self.options,
            steps=self.steps,
            sigma_y=problem.sigma_y,
            label=self.label,
            guidance=self.guidance,
            overlap=self.overlap,
            batch=self.batch,
            on_step=watch,
        )

    def _watch(self, numbers: range, tell: Tell, frames: Frames | None) -> Watch:
        """Told of evaluations by the methods; what a trained model does is short."""
        sigmas = levels_of(self.model, self.method, self.steps)

        def watch(sigma: float, clean: Tensor) -> None:
            gone = int((sigmas >= sigma).sum()) / len(sigmas)
            tell((numbers.start + gone * len(numbers)) / self.samples)
            if frames is not None:
                frames(sigma, clean)

        return watch

    def _pixels(self, x: Tensor) -> Tensor:
        """What was drawn as (B, C, H, W) in [-1, 1] on the CPU, as it is written."""
        return Pixels().decode(x).cpu().double() / 127.5 - 1

    @property
    def _tile(self) -> tuple[int, int]:
        return self.model.shape[1], self.model.shape[2]

    def _tiles(self, problem: Problem) -> int:
        """How many tiles an image takes."""
        if problem.operator is None or is_latent(self.model):
            return 1
        _, height, width = problem.operator.shape
        return len(corners((height, width), self._tile, tile_overlap(self.model, self.overlap)))

    def _files(
        self, name: str, problem: Problem, samples: Tensor, frames: list[np.ndarray]
    ) -> dict[str, bytes]:
        files = {f"restored/{name}.png": to_png(to_uint8(samples[0]))}
        for k in range(1, len(samples)):
            files[f"samples/{name}-{k}.png"] = to_png(to_uint8(samples[k]))
        panels: list[Panel] = [("before", to_uint8(problem.shown))]
        panels.append(("after", to_uint8(samples[0])))
        if len(samples) > 1:
            mean, spread = ("mean", to_uint8(samples.mean(0))), spread_panel(samples.std(0))
            panels += [mean, spread]
            files[f"mean/{name}.png"] = to_png(mean[1])
            files[f"spread/{name}.png"] = to_png(spread[1])
        if problem.clean is not None:
            panels.append(("truth", to_uint8(problem.clean[0])))
            files |= _measurement_files(name, problem)
        files[f"compare/{name}.png"] = before_after(panels)
        if frames:
            files[f"video/{name}.webp"] = film([*frames, to_uint8(samples[0])])
        return files

    def _record(
        self,
        name: str,
        problem: Problem,
        samples: Tensor,
        parts: Sequence[Restoration],
        seconds: float,
    ) -> dict[str, Any]:
        known = [part.consistency for part in parts if part.consistency is not None]
        record: dict[str, Any] = {
            "name": name,
            "task": self.setup.task.name,
            "method": "as trained" if problem.operator is None else self.method,
            "size": list(samples.shape[1:]),
            "sigma_y": problem.sigma_y,
            "nfe": parts[0].nfe,
            "seconds": seconds,
            "consistency": float(torch.cat(known).mean()) if known else None,
        }
        if len(samples) > 1:
            record["spread"] = float(samples.var(0).mean().sqrt())
        if (tiles := self._tiles(problem)) > 1:
            overlap = tile_overlap(self.model, self.overlap)
            record |= {"tiles": tiles, "seam": seam(samples[:1], self._tile, overlap)}
        if problem.clean is not None:
            operator = problem.operator
            naive = (
                problem.y if operator is None else baseline(self.setup.task, operator, problem.y)
            )
            record["metrics"] = figures(samples[:1], problem.clean)
            record["baseline"] = figures(naive, problem.clean)
            if len(samples) > 1:
                record["mean_metrics"] = figures(samples.mean(0)[None], problem.clean)
        return record


def figures(image: Tensor, clean: Tensor) -> dict[str, float]:
    """PSNR, and SSIM unless images are too small, of (1, C, H, W) in [-1, 1]."""
    a, b = ((x.clamp(-1, 1) + 1) / 2 for x in (image.double(), clean.double()))
    found = {"PSNR": float(psnr(a, b))}
    if min(image.shape[2:]) >= LEAST_FOR_SSIM:
        found["SSIM"] = float(ssim(a, b))
    return found


def _measurement_files(name: str, problem: Problem) -> dict[str, bytes]:
    """What was measured, so that it can be restored again without the truth."""
    array = io.BytesIO()
    np.save(array, problem.y[0].numpy())
    files = {
        f"measured/{name}.npy": array.getvalue(),
        f"measured/{name}.png": to_png(to_uint8(problem.shown)),
    }
    if isinstance(problem.operator, Mask):
        files[f"measured/{name}-mask.png"] = to_png(to_uint8(problem.operator.mask[:1] * 2 - 1))
    return files
