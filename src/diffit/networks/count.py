"""The size of a network: its parameters, and the multiplications of one forward pass."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffit.networks import NetworkConfig, build_network
from diffit.nn.embed import TimeEmbedding
from diffit.nn.time_norm import TimeVector, time_norm

READS_TIME = ("qkv_time", "value_time", "bias_time", "up_time", "modulation", "modulation_norm")
"""Names of the layers that read a time token, or a condition that it is part of."""


def count_parameters(network: nn.Module) -> int:
    """Number of trained numbers; fixed tables do not count."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_time_parameters(network: nn.Module) -> int:
    """Those of them that carry the noise level: time embedding, its readers, norms that know it."""
    return sum(
        count_parameters(module)
        for name, module in network.named_modules()
        if isinstance(module, TimeEmbedding | TimeVector) or name.rpartition(".")[2] in READS_TIME
    )


def count_macs(config: NetworkConfig) -> int:
    """Multiply-accumulates of one forward pass for one image, both attention products included.

    Counted on tensors without memory: no weights are made, and the largest network takes a second.
    """
    with torch.device("meta"):
        network = build_network(config).eval()
        x, time = torch.empty(1, *config.shape), torch.empty(1)
        label = torch.empty(1, dtype=torch.int64) if config.classes else None
        condition = config.condition_channels
        image = torch.empty(1, condition, *config.shape[1:]) if condition else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, time, label, image)
    return int(counter.get_total_flops()) // 2


TRAINING_PASSES = 3
"""Forward passes that a forward and a backward pass cost: the latter has two products for each."""


def training_flops(config: NetworkConfig) -> int:
    """Floating-point operations by which a network learns from one image, at least.

    Of what is computed twice to save memory one time counts, as in model FLOP/s utilisation
    (arXiv:2204.02311, appendix B).
    """
    return 2 * TRAINING_PASSES * count_macs(config)


def count_norms(width: int) -> dict[str, int]:
    """Parameters by which a transformer block of ``width`` with two norms knows the noise level.

    By kind: plain RMS norms, which do not; DiMR's time-dependent ones (arXiv:2406.09416); scale and
    shift read from a time token of the same width, and with gates, adaLN-Zero (arXiv:2212.09748).
    """
    with torch.device("meta"):
        kinds: dict[str, list[nn.Module]] = {
            "rms": [nn.RMSNorm(width), nn.RMSNorm(width)],
            "td-rms": [time_norm(width, "td-rms"), time_norm(width, "td-rms")],
            "td-ln": [time_norm(width, "td-ln"), time_norm(width, "td-ln")],
            "adaln": [nn.Linear(width, 4 * width)],
            "adaln-zero": [nn.Linear(width, 6 * width)],
        }
    return {
        kind: sum(count_parameters(layer) for layer in layers) for kind, layers in kinds.items()
    }
