"""Degradation operators: y = A x, with adjoint, pseudo-inverse, and the SVD where it is cheap."""

from diffit.restoration.operators.bicubic import bicubic, enlarge
from diffit.restoration.operators.blur_decimation import BlurDecimation
from diffit.restoration.operators.channels import BT601, MEAN, Channels, colorization
from diffit.restoration.operators.circular_blur import CircularBlur
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
from diffit.restoration.operators.separable_blur import separable_blur

__all__ = [
    "BT601",
    "MEAN",
    "BlurDecimation",
    "Channels",
    "CircularBlur",
    "Identity",
    "LinearOperator",
    "Mask",
    "Operator",
    "Separable",
    "SpectralOperator",
    "average_pooling",
    "bicubic",
    "colorization",
    "enlarge",
    "is_linear",
    "is_spectral",
    "separable_blur",
]
