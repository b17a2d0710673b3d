"""Noise of which each image of a batch has a stream of its own."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffit import draws


class ImageNoise:
    """Unit-normal draws; those of image b depend on ``seeds[b]`` alone, on any device.

    Args:
        seeds: one per image of the batch.
        shape: (C, H, W) of an image.
        device, dtype: of the draws; they are made on the CPU in float32.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.shape = tuple(shape)
        self.device, self.dtype = device, dtype
        self._streams = [draws.generator(seed, 0, "sample") for seed in seeds]

    def __call__(self) -> Tensor:
        """The next (B, C, H, W) draw."""
        rows = [stream.standard_normal(self.shape, dtype=np.float32) for stream in self._streams]
        return torch.from_numpy(np.stack(rows)).to(self.device).to(self.dtype)
