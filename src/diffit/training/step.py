"""One step: gradients of a batch in micro-batches, and what happens when they are not finite.

Each process computes the gradients of its part of the batch. What it decides by, all know: the
losses of the whole batch, the norm of the whole gradient, and what any of them was told to do.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from diffit.diffusion.loss import LossWeight, denoising_loss
from diffit.distributed import gather_numbers, world
from diffit.model import Model
from diffit.training.distill import Teacher
from diffit.training.inputs import Inputs
from diffit.training.optim import LossScale
from diffit.training.parallel import synchronised

Precision = Literal["fp32", "bf16", "fp16"]


class Gradients(NamedTuple):
    """What the batch of all processes says; the gradients themselves lie at the parameters.

    Attributes:
        losses: (B,) loss of each image, on the CPU.
        positions: (B,) place of their noise levels in the training law.
        norm: norm of the gradient of their mean.
        finite: whether all of it is finite.
        words: of each process.
    """

    losses: Tensor
    positions: Tensor
    norm: float
    finite: bool
    words: tuple[int, ...] = (0,)


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
        together: computes `losses` so that the gradients of all processes are added up.
    """

    model: Model
    weight: LossWeight | None = None
    precision: Precision = "fp32"
    scale: LossScale | None = None
    coarse_weights: Sequence[float] | None = None
    teacher: Teacher | None = None
    together: Callable[[Inputs], Tensor] | None = None

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
                inputs.image,
                weight=self.weight,
                coarse_weights=self.coarse_weights,
                augment=inputs.augment,
                keys=inputs.keys,
                seen=inputs.seen,
                lesson=self.teacher.lesson(denoiser, inputs) if self.teacher else None,
            ).total

    def gradients(
        self, inputs: Inputs, *, micro_batch: int | None = None, batch: int = 0, word: int = 0
    ) -> Gradients:
        """Gradients of the mean loss of a batch, computed ``micro_batch`` images at a time.

        Args:
            inputs: this process's part of the batch.
            micro_batch: how many of its images are computed at once; None for all.
            batch: how many images all processes have; 0 for those of ``inputs``.
            word: what this process tells the others on this occasion.
        """
        self._clear()
        count = len(inputs.number)
        losses = []
        for first in range(0, count, micro_batch or count):
            part = inputs.part(first, micro_batch or count)
            last = first + len(part.number) == count
            with synchronised(self.together, self.model.network, now=last):
                found = (self.together or self.losses)(part)
                # Divided by the whole batch, so that unequal parts count by their images; the
                # gradients of the processes are then averaged, where their sum is wanted.
                torch.autograd.backward(found.sum() * (self._factor * world() / (batch or count)))
            losses.append(found.detach())
        norm = self._unscaled_norm()
        # One transfer for everything that the loop looks at: each would wait for the device.
        own = torch.cat([torch.cat(losses).double(), norm.double()[None].to(losses[0].device)])
        return _told_to_all(own.cpu(), inputs.position, word, most=-(-(batch or count) // world()))

    @property
    def _factor(self) -> float:
        return self.scale.factor if self.scale else 1.0

    def _unscaled_norm(self) -> Tensor:
        """Take the loss scale out of the gradients; their norm."""
        gradients = [p.grad for p in self.model.network.parameters() if p.grad is not None]
        if self._factor != 1:
            torch._foreach_mul_(gradients, 1 / self._factor)
        norm = torch.nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def clip(self, norm: float, limit: float | None) -> None:
        """Scale the gradients, whose norm is known, down to a norm of at most ``limit``."""
        if limit is not None and norm > limit:
            gradients = [p.grad for p in self.model.network.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)

    def culprits(self, inputs: Inputs) -> dict[int, float]:
        """Place in this process's part of each image whose own loss or gradient is not finite,
        and the loss.

        Of a sharded network by the losses alone: no process has the gradient of one image.
        """
        if isinstance(self.model.network, FSDPModule):
            with torch.no_grad():
                losses = self.losses(inputs).tolist()
            self._clear()
            return {i: loss for i, loss in enumerate(losses) if not math.isfinite(loss)}
        found = {}
        for place in range(len(inputs.number)):
            self._clear()
            loss = self.losses(inputs.part(place, 1)).sum()
            torch.autograd.backward(loss * self._factor)
            if not torch.isfinite(loss.detach() + self._unscaled_norm()):
                found[place] = loss.item()
        self._clear()
        return found

    def _clear(self) -> None:
        if isinstance(self.model.network, FSDPModule):
            # A forward pass without a backward one leaves whole what lies around the blocks.
            self.model.network.reshard()
        for p in self.model.network.parameters():
            p.grad = None

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.model.device.type, dtype=dtype)


def _told_to_all(own: Tensor, positions: Tensor, word: int, *, most: int) -> Gradients:
    """What every process has measured, put together: (n,) losses of n <= most images, a norm."""
    numbers = torch.cat([own, positions.double(), own.new_tensor([word])])
    rows = gather_numbers(numbers, most=2 * most + 2)
    counts = [(len(row) - 2) // 2 for row in rows]
    losses = torch.cat([row[:n] for row, n in zip(rows, counts, strict=True)])
    places = torch.cat([row[n + 1 : -1] for row, n in zip(rows, counts, strict=True)])
    norm = rows[0][counts[0]]
    finite = bool(torch.isfinite(losses).all() and torch.isfinite(norm))
    words = tuple(int(row[-1]) for row in rows)
    return Gradients(losses, places, float(norm), finite, words)


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
