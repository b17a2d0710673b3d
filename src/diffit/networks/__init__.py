"""Network architectures: F(x, time, label, image), the raw prediction."""

from collections.abc import Iterable
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor, nn

from diffit.config import Settings
from diffit.networks.diffit import DiffiT, DiffiTConfig
from diffit.networks.dimr import DiMR, DiMRConfig
from diffit.networks.dit import DiT, DiTConfig
from diffit.networks.large_dit import LargeDiT, LargeDiTConfig
from diffit.networks.latent_diffit import LatentDiffiT, LatentDiffiTConfig
from diffit.networks.mdt import MDT, MDTConfig
from diffit.networks.uvit import UViT, UViTConfig


class Network(Protocol):
    """What every network of this library is called with and answers to."""

    config: Any

    def __call__(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        image: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The raw prediction, (B, C, H, W), or (B, 2 C, H, W) with a learned variance.

        Args:
            x: (B, C, H, W).
            time: (B,) float32 noise level, as the formulation counts it.
            label: (B,) int64 class; the number of classes, or None, means "no class".
            image: condition image; refused by networks that take none.
            augment: (B, 9) augmentation label; None counts as zeros.
            keys: (B,) int64 dropout keys; None for no dropout.
        """
        ...

    def blocks(self) -> Iterable[nn.Module]:
        """The heavy parts, in order: what to shard, compile, checkpoint or quantise."""
        ...


class Masked(Network, Protocol):
    """A network that is also trained on a part of the patches; its call takes ``seen`` too."""

    def choose_seen(self, share: Tensor, noise: Tensor) -> Tensor:
        """Draws of the training loop, (B,) and (B, N), to the (B, N) patches shown, bool."""
        ...


NETWORKS: dict[str, tuple[type[Settings], type[nn.Module]]] = {
    "diffit": (DiffiTConfig, DiffiT),
    "latent-diffit": (LatentDiffiTConfig, LatentDiffiT),
    "dit": (DiTConfig, DiT),
    "uvit": (UViTConfig, UViT),
    "mdt": (MDTConfig, MDT),
    "dimr": (DiMRConfig, DiMR),
    "large-dit": (LargeDiTConfig, LargeDiT),
}

NetworkConfig = Annotated[
    DiffiTConfig
    | LatentDiffiTConfig
    | DiTConfig
    | UViTConfig
    | MDTConfig
    | DiMRConfig
    | LargeDiTConfig,
    Field(discriminator="name"),
]


def build_network(config: NetworkConfig) -> nn.Module:
    """The untrained network of a configuration; its weights come from torch's generator."""
    _, kind = NETWORKS[config.name]
    return kind(config)
