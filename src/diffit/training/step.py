"""One step: gradients of a batch in micro-batches, and what happens when they are not finite."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffit.diffusion.loss import LossWeight, denoising_loss
from diffit.model import Model
from diffit.training.distill import Teacher
from diffit.training.inputs import Inputs
from diffit.training.optim import LossScale

Precision = Literal["fp32", "bf16", "fp16"]


class Gradients(NamedTuple):
    """What a batch says; the gradients themselves lie at the parameters.

    Attributes:
        losses: (B,) loss of each image, on the CPU.
        norm: norm of the gradient of their mean.
        finite: whether all of it is finite.
    """

    losses: Tensor
    norm: float
    finite: bool


@dataclass(frozen=True)
class Objective:
    """What is minimised, and in which precision it is computed.

    Attributes:
        model: its network's parameters are trained.
        weight: of the loss, as a function of the noise level.
        precision: fp32, or automatic mixed precision.
        scale: of the loss, for fp16.
        coarse_weights: of the loss at coarser resolutions, see `denoising_loss`.
        teacher: whose estimates are learned too; None for no teacher.
    """

    model: Model
    weight: LossWeight | None = None
    precision: Precision = "fp32"
    scale: LossScale | None = None
    coarse_weights: Sequence[float] | None = None
    teacher: Teacher | None = None

    def losses(self, inputs: Inputs) -> Tensor:
        """(B,) loss of each image."""
        denoiser = self.model.denoiser
        with self._autocast():
            return denoising_loss(
                denoiser,
                inputs.clean,
                inputs.noise,
                inputs.sigma,
                inputs.label,
                weight=self.weight,
                coarse_weights=self.coarse_weights,
                augment=inputs.augment,
                keys=inputs.keys,
                seen=inputs.seen,
                lesson=self.teacher.lesson(denoiser, inputs) if self.teacher else None,
            ).total

    def gradients(self, inputs: Inputs, *, micro_batch: int | None = None) -> Gradients:
        """Gradients of the mean loss, computed ``micro_batch`` images at a time."""
        self._clear()
        count = len(inputs.number)
        factor = self.scale.factor if self.scale else 1.0
        losses = []
        for first in range(0, count, micro_batch or count):
            part = self.losses(inputs.part(first, micro_batch or count))
            # Divided by the whole batch, so that unequal parts count by their images.
            torch.autograd.backward(part.sum() * (factor / count))
            losses.append(part.detach())
        return self._measure(torch.cat(losses), factor)

    def _measure(self, losses: Tensor, factor: float) -> Gradients:
        gradients = [p.grad for p in self.model.network.parameters() if p.grad is not None]
        if factor != 1:
            torch._foreach_mul_(gradients, 1 / factor)
        norm = torch.nn.utils.get_total_norm(gradients)
        # One transfer for everything that the loop looks at: each would wait for the device.
        *values, size = torch.cat([losses.double(), norm.double()[None].to(losses.device)]).tolist()
        finite = bool(torch.isfinite(torch.tensor([*values, size])).all())
        return Gradients(torch.tensor(values, dtype=torch.float64), size, finite)

    def clip(self, norm: float, limit: float | None) -> None:
        """Scale the gradients, whose norm is known, down to a norm of at most ``limit``."""
        if limit is not None and norm > limit:
            gradients = [p.grad for p in self.model.network.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)

    def culprits(self, inputs: Inputs) -> list[int]:
        """Places in the batch of the images whose own loss or gradient is not finite."""
        found = []
        for place in range(len(inputs.number)):
            if not self.gradients(inputs.part(place, 1)).finite:
                found.append(place)
        self._clear()
        return found

    def _clear(self) -> None:
        for p in self.model.network.parameters():
            p.grad = None

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.model.device.type, dtype=dtype)


@contextlib.contextmanager
def arithmetic(device: torch.device, *, tf32: bool, threads: int) -> Iterator[None]:
    """The numerical settings of a run, as they were before on leaving.

    On the CPU only deterministic kernels are used, so that a run can be repeated bit for bit.
    """
    deterministic: Any = torch.utils.deterministic
    before = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
        torch.get_num_threads(),
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        deterministic.fill_uninitialized_memory = False  # a check of torch's own, and slow
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]
        torch.use_deterministic_algorithms(before[2], warn_only=before[3])
        deterministic.fill_uninitialized_memory = before[4]
        torch.set_num_threads(before[5])
