"""What is measured of images, checked before a method computes with it."""

import torch
from torch import Tensor

from diffit.errors import UsageError
from diffit.restoration.operators.operator import Operator


def check_measurement(y: Tensor, operator: Operator) -> None:
    """UsageError unless ``y`` is (B, *measured), finite, and of a size that images in [-1, 1] give.

    The last is a coarse check, made for images that were left at 0 to 255.
    """
    if tuple(y.shape[1:]) != tuple(operator.measured) or len(y) == 0:
        raise UsageError(
            f"the measurement has shape {tuple(y.shape[1:])}; for images of shape "
            f"{tuple(operator.shape)} this task measures {tuple(operator.measured)}"
        )
    if not y.isfinite().all():
        raise UsageError("the measurement holds numbers that are not finite; mend or mask them")
    white = operator(torch.ones(len(y), *operator.shape, dtype=y.dtype, device=y.device))
    limit = 32 * max(float(white.abs().max()), 1.0)
    reach = float(y.abs().max())
    if reach > limit:
        raise UsageError(
            f"the measurement reaches {reach:.4g}, beyond what images in [-1, 1] give; "
            "scale images of 0 to 255 to -1 to 1 first"
        )
