"""Degradation operators: y = A x, with adjoint, pseudo-inverse, and the SVD where it is cheap."""

from diffit.restoration.operators.bicubic import bicubic, enlarge
from diffit.restoration.operators.block_sensing import BlockSensing
from diffit.restoration.operators.blur_decimation import BlurDecimation
from diffit.restoration.operators.channels import BT601, MEAN, Channels, colorization
from diffit.restoration.operators.circular_blur import CircularBlur
from diffit.restoration.operators.compositions import compose, stack
from diffit.restoration.operators.fourier import Fourier
from diffit.restoration.operators.hadamard import WalshHadamard
from diffit.restoration.operators.identity import Identity
from diffit.restoration.operators.jpeg import Jpeg
from diffit.restoration.operators.mask import Mask
from diffit.restoration.operators.measurement import check_measurement
from diffit.restoration.operators.operator import (
    LinearOperator,
    Operator,
    SpectralOperator,
    is_linear,
    is_spectral,
)
from diffit.restoration.operators.phase import PhaseRetrieval
from diffit.restoration.operators.pointwise import Clip, Quantise
from diffit.restoration.operators.radon import Radon
from diffit.restoration.operators.reflect_blur import ReflectBlur
from diffit.restoration.operators.separable import Separable, average_pooling
from diffit.restoration.operators.separable_blur import separable_blur

__all__ = [
    "BT601",
    "MEAN",
    "BlockSensing",
    "BlurDecimation",
    "Channels",
    "CircularBlur",
    "Clip",
    "Fourier",
    "Identity",
    "Jpeg",
    "LinearOperator",
    "Mask",
    "Operator",
    "PhaseRetrieval",
    "Quantise",
    "Radon",
    "ReflectBlur",
    "Separable",
    "SpectralOperator",
    "WalshHadamard",
    "average_pooling",
    "bicubic",
    "check_measurement",
    "colorization",
    "compose",
    "enlarge",
    "is_linear",
    "is_spectral",
    "separable_blur",
    "stack",
]
