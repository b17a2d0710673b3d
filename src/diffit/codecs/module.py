"""The networks of diffusers' autoencoders, built and filled without trusting their files.

A network is first built without memory and compared with the files, so that a configuration cannot
make it larger than its weights are.
"""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffit.errors import CheckpointError, UsageError

Kind = Literal["kl", "tiny", "dc"]

KINDS: dict[str, Kind] = {
    "AutoencoderKL": "kl",
    "AutoencoderTiny": "tiny",
    "AutoencoderDC": "dc",
}
"""Class in diffusers -> our name."""

MAX_STAGES, MAX_CHANNELS = 8, 1024
MAX_BLOCKS = 100
"""Layers of a stage, or stages; more than this no autoencoder has."""

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention layers were called so up to diffusers 0.17; the Stable Diffusion files still are."""


class Facts(NamedTuple):
    """What an autoencoder's configuration says of its latents."""

    kind: Kind
    channels: int
    factor: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...]


def read_facts(content: Mapping[str, Any], *, source: str) -> Facts:
    """The facts in the content of a `config.json`; CheckpointError if it is not one of ours.

    Where a key is missing, diffusers' own default is meant: so it is for Stable Diffusion's scale.
    """
    kind = KINDS.get(str(content.get("_class_name")))
    if kind is None:
        raise CheckpointError(
            f"{source} is a {content.get('_class_name', 'thing without a _class_name')}; "
            f"autoencoders that this library reads are {', '.join(KINDS)}"
        )
    defaults = {"kl": (4, 1, 0.18215), "tiny": (4, 4, 1.0), "dc": (32, 6, 1.0)}[kind]
    blocks = "block_out_channels" if kind == "kl" else "encoder_block_out_channels"
    try:
        stages = len(content[blocks]) if blocks in content else defaults[1]
        channels = int(content.get("latent_channels", defaults[0]))
        scale = float(content.get("scaling_factor", defaults[2]))
        shift = float(content.get("shift_factor") or 0.0)
        means, stds = (
            [float(value) for value in content.get(name) or ()]
            for name in ("latents_mean", "latents_std")
        )
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError(f"the configuration of {source} holds impossible values") from None
    if (
        not (1 <= stages <= MAX_STAGES and 1 <= channels <= MAX_CHANNELS)
        or not all(math.isfinite(value) for value in (scale, shift, *means, *stds))
        or not all(value > 0 for value in (scale, *stds))
        or not {len(means), len(stds)} <= {0, channels}
    ):
        raise CheckpointError(f"the configuration of {source} holds impossible values")
    images = content.get("in_channels", 3), content.get("out_channels", 3)
    if images != (3, 3):
        raise CheckpointError(f"{source} is for images of {images[0]} channels, not for RGB")
    factor = 2 ** (stages - 1)
    if means and stds:  # normalised channel by channel: (z - mean) * scale / std
        return Facts(kind, channels, factor, tuple(scale / std for std in stds), tuple(means))
    return Facts(kind, channels, factor, scale, shift)


def build_module(
    content: Mapping[str, Any], files: Sequence[Path], *, source: str, dtype: torch.dtype
) -> nn.Module:
    """The network with its weights, on the CPU, for inference.

    Raises:
        CheckpointError: damaged files, or weights of another network than the configuration's.
        UsageError: diffusers is not installed.
    """
    tensors = _read(files)
    with torch.device("meta"):
        module = _empty(content, source)
    wanted = module.state_dict()
    for key in sorted(wanted.keys() ^ tensors.keys()):
        side = "lack" if key in wanted else "have the unknown"
        raise CheckpointError(f"the weights of {source} {side} tensor {key!r}; fetch it again")
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"the weights of {source} do not fit its configuration: {key!r} is "
                f"{list(tensor.shape)} instead of {list(wanted[key].shape)}"
            )
    module.load_state_dict({k: t.to(dtype) for k, t in tensors.items()}, assign=True)
    return module.eval().requires_grad_(False)


def _read(files: Sequence[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= {_present_name(key): tensor for key, tensor in load_file(file).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); fetch it again") from None
    return tensors


def _present_name(key: str) -> str:
    return re.sub(
        r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.",
        lambda found: f"{found[1]}.{OLD_NAMES[found[2]]}.",
        key,
    )


def _empty(content: Mapping[str, Any], source: str) -> nn.Module:
    name = str(content["_class_name"])
    kind = _import(name)
    known = inspect.signature(kind.__init__).parameters
    settings = {key: value for key, value in content.items() if key in known and key != "self"}
    if not _modest(settings):
        raise CheckpointError(f"the configuration of {source} holds impossible values")
    try:
        module: nn.Module = kind(**settings)
    except Exception as error:
        # diffusers checks its arguments in many places, each with an exception of its own.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"diffusers makes no {name} of {source}: {reason}") from None
    return module


def _modest(settings: Any) -> bool:
    """Whether lists are short and layers few: building must end, also without memory."""
    if isinstance(settings, dict):
        counts = [v for k, v in settings.items() if "layers" in k or k.startswith("num_")]
        return all(map(_modest, settings.values())) and all(map(_few, counts))
    if isinstance(settings, (list, tuple)):
        return _few(len(settings)) and all(map(_modest, settings))
    return True


def _few(count: Any) -> bool:
    if isinstance(count, (list, tuple)):
        return all(map(_few, count))
    return not isinstance(count, (int, float)) or count <= MAX_BLOCKS


def _import(name: str) -> Any:
    try:
        import diffusers
    except ImportError:
        raise UsageError(
            "an autoencoder needs the package diffusers: pip install 'diffit-torch[latent]'"
        ) from None
    return getattr(diffusers, name)
