"""Counter-based dropout: a mask is a function of an image's key, the layer and the element.

Torch's dropout draws from one stream, so that its mask depends on the batch, the device and all
draws before. Here each element's fate is a hash, in integers that stay below 2^63 and are therefore
exact everywhere: the same image gets the same mask in any batch, on any device, in any process.
"""

import torch
from torch import Tensor, nn

_MASK = (1 << 31) - 1
# Odd multipliers below 2^32 whose bits are well spread; a 31-bit state times one stays below 2^63.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
_GOLDEN = 0x9E3779B9


def _mix(state: Tensor) -> Tensor:
    """A bijection of 31-bit integers, multiply and shift-xor, that lets each bit move all."""
    state = (state ^ (state >> 16)) * _FIRST & _MASK
    state = (state ^ (state >> 15)) * _SECOND & _MASK
    return state ^ (state >> 16)


def hashed(keys: Tensor, salt: int, count: int) -> Tensor:
    """(B,) int64 keys to (B, count) int64 numbers in 0 .. 2^31 - 1, uniform for all purposes here.

    Row b depends on ``keys[b]`` and ``salt`` alone, its element i on i besides.
    """
    low, high = keys & _MASK, (keys >> 31) & _MASK
    rows = _mix(_mix(low ^ (salt * _GOLDEN & _MASK)) ^ high ^ ((keys >> 62) & 3))
    elements = _mix(torch.arange(count, device=keys.device) & _MASK)
    return _mix(rows[:, None] ^ elements)


def dropout(x: Tensor, probability: float, keys: Tensor, salt: int) -> Tensor:
    """(B, ...) with elements zeroed with ``probability`` and the others scaled by 1 / (1 - p)."""
    kept = hashed(keys, salt, x[0].numel()) >= round(probability * (_MASK + 1))
    return x * kept.view_as(x) / (1 - probability)


class Dropout(nn.Module):
    """Dropout with a mask from `hashed`; inactive where no keys are given.

    Args:
        probability: share p of elements set to zero, 0 <= p < 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout ({probability}) must be at least 0 and below 1")
        self.probability = probability
        self.salt = 0

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """(B, ...) and (B,) int64 keys, or None for no dropout, to the shape of x."""
        if keys is None or self.probability == 0:
            return x
        return dropout(x, self.probability, keys, self.salt)


def number_dropouts(network: nn.Module) -> None:
    """Give each `Dropout` of a network its own salt, its place in the order of the modules."""
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    for place, layer in enumerate(layers):
        layer.salt = place + 1
