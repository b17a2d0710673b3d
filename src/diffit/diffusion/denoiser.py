"""D(x, sigma, label): the one function through which every network is used."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffit.diffusion.formulation import Formulation
from diffit.diffusion.scalings import Scalings
from diffit.diffusion.scalings import over as over  # where samplers and losses look for it
from diffit.distributed import double

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) to the estimate of the clean image: label and guidance inside."""


class Estimate(NamedTuple):
    """What a network with learned variance says about the clean image.

    Attributes:
        clean: (B, C, H, W) expected clean image.
        fraction: (B, C, H, W) where the log variance of a step lies between its lower bound (0)
            and its upper bound (1); see `diffit.diffusion.posterior.log_variance`.
    """

    clean: Tensor
    fraction: Tensor


Estimator = Callable[[Tensor, Tensor], Estimate]
"""(x, sigma) to an `Estimate`: label and guidance inside."""


class Denoiser(nn.Module):
    """Expected clean image, given x = clean + sigma * noise.

    The scalings are computed in float64 and applied in the precision of x; the network runs in
    its own precision and is told the time in float32.

    Args:
        network: (x, time, label, image, augment=, keys=) to its raw prediction.
        formulation: what the network sees and predicts.
    """

    def __init__(self, network: nn.Module, formulation: Formulation) -> None:
        super().__init__()
        self.network = network
        self.formulation = formulation

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        image: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The clean image.

        Args:
            x: (B, C, H, W), any floating dtype.
            sigma: () or (B,), above 0; kept on the CPU it costs the accelerator no wait.
            label: (B,) int64 class, or None for no class.
            image: (B, condition_channels, H, W) degraded image, for models that restore.
            augment: (B, 9) label of the augmentation in training, None for none.
            keys: (B,) int64 dropout keys in training, None for no dropout.

        Returns:
            (B, C, H, W) in the dtype of x.
        """
        scalings = self._scalings(sigma)
        raw = self._raw(x, sigma, scalings, label, image, augment, keys)
        return self._clean(x, raw, scalings)

    def estimate(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        image: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Estimate:
        """The clean image and the learned variance; arguments as in `forward`."""
        if not self.formulation.learned_variance:
            raise ValueError(
                "this network has learned no variance; take the sampler 'ancestral', which needs "
                "none, or a model with formulation.learned_variance"
            )
        scalings = self._scalings(sigma)
        raw = self._raw(x, sigma, scalings, label, image, augment, keys)
        return Estimate(self._clean(x, raw, scalings), (raw[:, x.shape[1] :] + 1) / 2)

    def raw(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        image: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        keys: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """The network's own output F(inp * x, time), (B, C or 2 C, H, W), in the dtype of x.

        ``seen`` (B, N) says what a network with masked training is shown; None is everything.
        """
        return self._raw(x, sigma, self._scalings(sigma), label, image, augment, keys, seen)

    def pyramid(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        image: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> list[Tensor]:
        """`raw` at every resolution that the network predicts at, coarse to fine.

        Of most networks that is `raw` alone, as the one tensor of the list; those with more have
        a method ``pyramid``, called as the network itself.
        """
        predict = getattr(self.network, "pyramid", None) or self._alone
        given = self._inputs(x, sigma, self._scalings(sigma), label, image)
        *coarse, finest = predict(*given, augment=augment, keys=keys)
        return [*(each.to(x.dtype) for each in coarse), self._checked(finest, x)]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network: of its first floating weight, float32 if it has none."""
        for tensor in itertools.chain(self.network.parameters(), self.network.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.float32

    def _scalings(self, sigma: Tensor) -> Scalings:
        return self.formulation.scalings(sigma.to(double(sigma.device)))

    def _raw(
        self,
        x: Tensor,
        sigma: Tensor,
        scalings: Scalings,
        label: Tensor | None,
        image: Tensor | None,
        augment: Tensor | None,
        keys: Tensor | None,
        seen: Tensor | None = None,
    ) -> Tensor:
        given = self._inputs(x, sigma, scalings, label, image)
        masked = {} if seen is None else {"seen": seen}
        return self._checked(self.network(*given, augment=augment, keys=keys, **masked), x)

    def _alone(self, *given: Any, **keywords: Any) -> list[Tensor]:
        """The pyramid of a network that predicts at one resolution."""
        return [self.network(*given, **keywords)]

    def _inputs(
        self,
        x: Tensor,
        sigma: Tensor,
        scalings: Scalings,
        label: Tensor | None,
        image: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What the network is called with."""
        _refuse_label(self.network, label)
        # In bf16 the step indices 0..999 would collapse to 507 values: time stays float32.
        time = scalings.noise.to(torch.float32).to(x.device).expand(x.shape[0])
        inputs, shift = over(scalings.inp, x) * x, self.formulation.shift
        if shift is not None:
            if image is None:
                raise ValueError(f"{self.formulation.name} starts from a degraded image; give it")
            inputs = inputs + over(shift(sigma), x) * image.to(x)
        shown = None if image is None or self._told_by_x() else image.to(self.dtype)
        return inputs.to(self.dtype), time, label, shown

    def _told_by_x(self) -> bool:
        """Whether x holds all that the network is told of the degraded image, as in InDI."""
        config = getattr(self.network, "config", None)
        return self.formulation.restores and getattr(config, "condition_channels", 1) == 0

    def _checked(self, raw: Tensor, x: Tensor) -> Tensor:
        expected = x.shape[1] * (2 if self.formulation.learned_variance else 1)
        if raw.shape[1] != expected:
            raise ValueError(
                f"the network answers with {raw.shape[1]} channels for an image of {x.shape[1]}, "
                f"expected {expected}: learned_variance of network and formulation must agree"
            )
        return raw.to(x.dtype)

    def _clean(self, x: Tensor, raw: Tensor, scalings: Scalings) -> Tensor:
        return over(scalings.skip, x) * x + over(scalings.out, x) * raw[:, : x.shape[1]]


def _refuse_label(network: nn.Module, label: Tensor | None) -> None:
    config = getattr(network, "config", None)
    if label is not None and config is not None and not config.classes:
        raise ValueError("this network was trained without classes; call it without a label")
