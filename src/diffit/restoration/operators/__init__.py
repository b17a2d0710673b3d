"""Degradation operators: y = A x, with adjoint, pseudo-inverse, and the SVD where it is cheap."""

from diffit.restoration.operators.channels import BT601, MEAN, Channels, colorization
from diffit.restoration.operators.identity import Identity
from diffit.restoration.operators.mask import Mask
from diffit.restoration.operators.operator import (
    LinearOperator,
    Operator,
    SpectralOperator,
    is_linear,
    is_spectral,
)
from diffit.restoration.operators.separable import Separable, average_pooling

__all__ = [
    "BT601",
    "MEAN",
    "Channels",
    "Identity",
    "LinearOperator",
    "Mask",
    "Operator",
    "Separable",
    "SpectralOperator",
    "average_pooling",
    "colorization",
    "is_linear",
    "is_spectral",
]
