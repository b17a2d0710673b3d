"""The tiny ViT of the recorded explanations, and what was recorded."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffit.explain.vit import ViT, ViTConfig, build_vit

FIXTURE = Path(__file__).parent.parent / "fixtures" / "faithful_attribution.safetensors"


@cache
def recorded() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE)


def reference_vit() -> ViT:
    """In float64, with the recorded weights."""
    config = ViTConfig(size=32, patch=8, width=32, depth=3, heads=4, classes=10, mlp_ratio=2)
    vit = build_vit(config).double()
    prefix = "weights/"
    vit.load_state_dict(
        {k.removeprefix(prefix): v for k, v in recorded().items() if k.startswith(prefix)}
    )
    vit.norm.eps = 1e-5  # the reference's last norm differs from those of its blocks
    return vit.eval()
