"""The images that an attack may reach: a ball around an image, cut by the range of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffit import draws

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Ball:
    """All images within a distance of an image.

    Attributes:
        norm: how the distance is measured.
        eps: the distance, for pixels in [-1, 1].
    """

    norm: Norm
    eps: float

    def project(self, x: Tensor, images: Tensor) -> Tensor:
        """The point of the ball around ``images`` nearest to x, then moved into [-1, 1]."""
        if self.norm == "linf":
            return torch.clamp(x, images - self.eps, images + self.eps).clamp(-1, 1)
        moved = x - images
        length = _norm(moved)
        # Images lie in [-1, 1]: clamping only brings x nearer to them.
        return (images + moved * (self.eps / length.clamp_min(self.eps))).clamp(-1, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 in which a linear function rises most; 0 where it is flat."""
        if self.norm == "linf":
            return gradient.sign()
        length = _norm(gradient)
        return gradient / torch.where(length > 0, length, 1)

    def anywhere(
        self, images: Tensor, *, seed: int, numbers: Sequence[int], purpose: str
    ) -> Tensor:
        """Images uniformly in the ball, then moved into [-1, 1]."""
        shape = images.shape[1:]
        generators = [draws.generator(seed, int(n), purpose) for n in numbers]
        if self.norm == "linf":
            moved = torch.stack([torch.from_numpy(g.uniform(-1, 1, shape)) for g in generators])
        else:
            normal = torch.stack([torch.from_numpy(g.standard_normal(shape)) for g in generators])
            # The share of a ball within a radius r is r^d.
            depth = [float(g.random()) ** (1 / normal[0].numel()) for g in generators]
            moved = normal / _norm(normal) * torch.tensor(depth).double()[:, None, None, None]
        return self.project(images + self.eps * moved.to(images), images)


def _norm(x: Tensor) -> Tensor:
    """(B, 1, 1, 1) l2 norm of each image."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norm
