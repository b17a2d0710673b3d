"""TAESD in one file as a folder: the tiny autoencoders of Ollin Boer Bohan (madebyollin/taesd).

They are passed on as one safetensors file of `encoder.layers.N` and `decoder.layers.N`, numbered as
diffusers' `AutoencoderTiny` does (it counts no clamp), also in 8 or 16 bits. Their latents are made
to stand in for those of Stable Diffusion 1/2 (4 channels), 3 or FLUX.1 (16), after scale and shift.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffit.codecs.module import build_module
from diffit.codecs.source import CONFIG, WEIGHTS
from diffit.errors import CheckpointError

SIDES = ("encoder", "decoder")


def folder_from_file(file: str | Path, out: str | Path) -> Path:
    """Write an autoencoder of one file to the new folder ``out``, in float32; returns ``out``.

    CheckpointError if the file is no such autoencoder, or if ``out`` holds something already.
    """
    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already; name a new folder")
    tensors = _read(file)
    content = _configuration(tensors, file)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS)
    # The weights must be those of the configuration, all of them.
    try:
        build_module(content, [out / WEIGHTS], source=str(file), dtype=torch.float32)
    except CheckpointError:
        (out / WEIGHTS).unlink()
        raise
    # Last, so that a folder with a configuration is whole.
    (out / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return out


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return {key: tensor.float().contiguous() for key, tensor in load_file(file).items()}
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; name a safetensors file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no intact safetensors file ({error})") from None


def _configuration(tensors: Mapping[str, Tensor], file: Path) -> dict[str, object]:
    """The `config.json` that the names and shapes stand for.

    A stage of the encoder is a convolution and its blocks, one of the decoder blocks and a
    convolution; blocks are told by their inner `conv`.
    """
    stages = {side: _stages(tensors, side, file) for side in SIDES}
    encoder, decoder = stages["encoder"], stages["decoder"]
    # The encoder ends, and the decoder begins, with a convolution that has no blocks.
    widths = {side: tensors[f"{side}.layers.0.weight"].shape[0] for side in SIDES}
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": tensors["decoder.layers.0.weight"].shape[1],
        "encoder_block_out_channels": [widths["encoder"]] * len(encoder),
        "decoder_block_out_channels": [widths["decoder"]] * len(decoder),
        "num_encoder_blocks": encoder,
        "num_decoder_blocks": decoder,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    }


def _stages(tensors: Mapping[str, Tensor], side: str, file: Path) -> list[int]:
    """How many blocks stand between each two convolutions of one side."""
    found = {
        int(match[1]): bool(match[2])
        for key, tensor in tensors.items()
        if tensor.ndim == 4
        and (match := re.fullmatch(rf"{side}\.layers\.(\d+)(\.conv\.\d+)?\.weight", key))
    }
    counts: list[int] = []
    for _, block in sorted(found.items()):
        if not block:
            counts.append(0)
        elif counts:
            counts[-1] += 1
    if len(counts) < 2 or 0 not in found:
        raise CheckpointError(
            f"{file} is no tiny autoencoder in one file: it lacks the layers of its {side}"
        )
    return counts[:-1]
