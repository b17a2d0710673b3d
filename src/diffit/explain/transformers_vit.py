"""ViT and DeiT of transformers as our `ViT`, the same architecture: weights are only renamed.

That gives them relevance propagation, and fused attention where no map is asked for. Images of
another size are resized to that of the position table, which is not interpolated.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffit.errors import CheckpointError
from diffit.explain.classifier import Classifier
from diffit.explain.transformers_folder import WEIGHTS, Facts, read_facts
from diffit.explain.transformers_model import open_model
from diffit.explain.vit import Distillation, ViT, ViTConfig, empty_vit

KINDS = ("vit", "deit")

RENAMED = (
    (r"(?:vit|deit)\.embeddings\.cls_token", "cls_token"),
    (r"deit\.embeddings\.distillation_token", "dist_token"),
    (r"(?:vit|deit)\.embeddings\.position_embeddings", "pos_embed"),
    (r"(?:vit|deit)\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"(?:vit|deit)\.encoder\.layer\.(\d+)\.attention\.attention\.", r"blocks.\1.attn."),
    (r"(?:vit|deit)\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"(?:vit|deit)\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"(?:vit|deit)\.encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"(?:vit|deit)\.encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"(?:vit|deit)\.encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"(?:vit|deit)\.layernorm\.", "norm."),
    (r"(?:cls_)?classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
)
"""Beginnings of names in the files of transformers, and ours."""

UNUSED = re.compile(r"(?:vit|deit)\.(?:pooler\.|embeddings\.mask_token$)")


def open_transformers(folder: Path, *, name: str = "") -> Classifier:
    """The image classifier in a folder of transformers, frozen, in evaluation mode, on the CPU.

    Args:
        folder: holds `config.json`, `preprocessor_config.json` and safetensors.
        name: what messages call it; by default the folder.

    Returns:
        A `ViT` for ViT and DeiT; else an adapter around transformers' own network, which shows its
        attention if that network does.

    Raises:
        CheckpointError: a file is missing, damaged or unusual.
        UsageError: transformers is needed and not installed.
    """
    facts = read_facts(folder, name=name)
    if is_plain(facts):
        return read_vit(folder, facts)
    return open_model(folder, facts)


def is_plain(facts: Facts) -> bool:
    """Whether the network is one that our `ViT` computes."""
    return facts.kind in KINDS and facts.config.get("hidden_act", "gelu") == "gelu"


def read_vit(folder: Path, facts: Facts) -> ViT:
    """A ViT or DeiT of transformers as our `ViT`, in float32."""
    try:
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}; other formats are not read, since they could run code: "
            "write it anew with transformers' save_pretrained"
        ) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}; fetch it again") from None
    if not any(key.startswith(("classifier.", "cls_classifier.")) for key in tensors):
        raise CheckpointError(
            f"{facts.name} has features and no classes; name a model that was trained to classify"
        )
    state = rename(tensors, source=facts.name)
    vit = empty_vit(shape_of(state, facts))
    for key, wanted in vit.state_dict().items():
        found = tuple(state[key].shape) if key in state else None
        if found != tuple(wanted.shape):
            raise CheckpointError(
                f"{facts.name}: tensor {key} is {found}, but its configuration wants "
                f"{tuple(wanted.shape)}; fetch it again"
            )
    vit.load_state_dict(state, assign=True)
    vit.name = facts.name
    return vit.eval().requires_grad_(False)


def rename(tensors: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Tensors by our names, in float32, queries, keys and values in one."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if UNUSED.match(key):
            continue
        new = next((re.sub(old, new, key) for old, new in RENAMED if re.match(old, key)), None)
        if new is None:
            raise CheckpointError(f"{source} has a tensor {key!r}, which no ViT of this kind has")
        found[new] = tensor.float()
    for key in [key for key in found if key.endswith("attn.query.weight")]:
        block = key.removesuffix("query.weight")
        _join(found, block, source)
    return found


def _join(found: dict[str, Tensor], block: str, source: str) -> None:
    """Replace the separate queries, keys and values of a block; biases that lack are 0."""
    try:
        weights = [found.pop(f"{block}{part}.weight") for part in ("query", "key", "value")]
    except KeyError as error:
        raise CheckpointError(f"{source} has no tensor {error}; fetch it again") from None
    none = torch.zeros(len(weights[0]))
    biases = [found.pop(f"{block}{part}.bias", none) for part in ("query", "key", "value")]
    found[f"{block}qkv.weight"] = torch.cat(weights)
    found[f"{block}qkv.bias"] = torch.cat(biases)


def shape_of(state: Mapping[str, Tensor], facts: Facts) -> ViTConfig:
    """The shape of a network: that of its tensors, and what its configuration adds."""
    try:
        return ViTConfig.model_validate(_shape_of(state, facts))
    except KeyError as error:
        raise CheckpointError(f"{facts.name} has no tensor {error}; fetch it again") from None
    except (ValidationError, ValueError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{facts.name} is no ViT that can be read: {_first_line(error)}"
        ) from None


def _shape_of(state: Mapping[str, Tensor], facts: Facts) -> dict[str, Any]:
    kernel, (classes, width) = state["patch_embed.proj.weight"].shape, state["head.weight"].shape
    distillation: Distillation = "none"
    if "dist_token" in state:
        distillation = "head" if "head_dist.weight" in state else "token"
    places = state["pos_embed"].shape[1] - (1 if distillation == "none" else 2)
    side = round(places**0.5)
    if side * side != places:
        raise ValueError(f"its {places} places make no square; only square images are read")
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    return {
        "size": side * kernel[-1], "patch": kernel[-1], "channels": kernel[1],
        "width": width, "depth": sum(key.endswith("attn.qkv.weight") for key in state),
        "heads": facts.config.get("num_attention_heads", 12), "mlp_ratio": hidden / width,
        "class_names": facts.class_names(classes), "mean": facts.mean, "std": facts.std,
        "distillation": distillation, "norm_eps": facts.config.get("layer_norm_eps", 1e-12),
    }  # fmt: skip


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
    return str(error)
