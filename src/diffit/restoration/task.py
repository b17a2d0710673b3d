"""What a task of restoration is: how an image is measured, how a degraded one looks.

Images are (C, H, W) in [-1, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from diffit import draws
from diffit.restoration.degrade import noise as noises
from diffit.restoration.operators import Operator

Shape = tuple[int, ...]
Build = Callable[[Shape, np.random.Generator], Operator]
"""(C, H, W) and the stream of what is random about an operator, to the operator."""
Degrade = Callable[[Tensor, np.random.Generator], Tensor]
Picture = Callable[[Operator, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One way in which images are degraded.

    It has an operator (``build``), for the methods that need none but a denoiser, or else it
    degrades images (``synthesise``) as a trained model is to undo it.
    """

    name: str
    about: str
    """One line for tables and help texts."""
    build: Build | None = None
    """Makes the operator; None for what only a trained model can undo."""
    noise: float = 0.0
    """Standard deviation of the noise of a measurement, in the units of [-1, 1]."""
    spoil: Degrade | None = None
    """(y, generator) to y with noise, where it is not normal with ``noise`` everywhere."""
    show: Picture | None = None
    """Makes a picture of a measurement; by default the measurement is one."""
    synthesise: Degrade | None = None
    """Degrades an image where there is no operator."""
    varies: bool = False
    """Whether each image has an operator of its own; otherwise training shows all the same."""

    def operator(self, shape: Shape, seed: int) -> Operator | None:
        """The operator for images of ``shape``; its mask or kernel follows from ``seed``."""
        if self.build is None:
            return None
        return self.build(tuple(shape), draws.generator(seed, 0, self.name))

    def measure(
        self, operator: Operator, clean: Tensor, generators: Sequence[np.random.Generator]
    ) -> Tensor:
        """(B, C, H, W) images to (B, *measured) with noise, drawn from one generator an image."""
        spoil = self.spoil or noises.gaussian(self.noise)
        rows = [
            spoil(row, generator)
            for row, generator in zip(operator(clean), generators, strict=True)
        ]
        keep = getattr(operator, "keep", None)
        noisy = torch.stack(rows)
        return noisy if keep is None else keep(noisy)

    def picture(self, operator: Operator, y: Tensor) -> Tensor:
        """(B, *measured) to (B, C, H, W) in [-1, 1]: what a supervised model is shown."""
        image = y if self.show is None else self.show(operator, y)
        return image.clamp(-1, 1)

    def degrade(self, clean: Tensor, generator: np.random.Generator) -> Tensor:
        """A clean (C, H, W) image in [-1, 1] as the degraded picture of the same shape."""
        if self.synthesise is not None:
            # Synthesis draws on the CPU, wherever the image is.
            return self.synthesise(clean.cpu().float(), generator).clamp(-1, 1).to(clean)
        shape = tuple(clean.shape)
        seed = int(generator.integers(1 << 62)) if self.varies else 0
        operator = self.operator(shape, seed) if self.varies else _fixed(self, shape)
        if operator is None:
            raise ValueError(f"task {self.name} has neither an operator nor a synthesis")
        return self.picture(operator, self.measure(operator, clean[None], [generator]))[0]


@lru_cache(maxsize=16)
def _fixed(task: Task, shape: Shape) -> Operator | None:
    return task.operator(shape, 0)
