"""Autoencoders of a few thousand random weights in diffusers' layout, made on the spot."""

from pathlib import Path
from typing import Any

import torch

KINDS = ("kl", "tiny", "dc")


def make(kind: str, folder: Path, *, seed: int = 0, **settings: Any) -> Any:
    """Write an autoencoder of factor 4 to ``folder``; diffusers' own object, to compare with."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match kind:
            case "kl":
                module = diffusers.AutoencoderKL(
                    **{
                        "block_out_channels": (8, 16, 16),
                        "down_block_types": ("DownEncoderBlock2D",) * 3,
                        "up_block_types": ("UpDecoderBlock2D",) * 3,
                        "norm_num_groups": 4,
                        **settings,
                    }
                )
            case "tiny":
                module = diffusers.AutoencoderTiny(
                    **{
                        "encoder_block_out_channels": (8, 8, 8),
                        "decoder_block_out_channels": (8, 8, 8),
                        "num_encoder_blocks": (1, 1, 1),
                        "num_decoder_blocks": (1, 1, 1),
                        **settings,
                    }
                )
            case _:
                module = diffusers.AutoencoderDC(
                    **{
                        "latent_channels": 8,
                        "attention_head_dim": 8,
                        "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
                        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
                        "encoder_block_out_channels": (8, 16, 16),
                        "decoder_block_out_channels": (8, 16, 16),
                        "encoder_layers_per_block": (1, 1, 1),
                        "decoder_layers_per_block": (1, 1, 1),
                        "encoder_qkv_multiscales": ((), (), (5,)),
                        "decoder_qkv_multiscales": ((), (), (5,)),
                        "scaling_factor": 0.41407,
                        **settings,
                    }
                )
    module.save_pretrained(folder)
    return module.eval()
