"""Least squares with an operator and its adjoint alone: conjugate gradients (CGLS).

Björck, Numerical Methods for Least Squares Problems (1996), section 7.4.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffit.restoration.operators.tensors import over

if TYPE_CHECKING:
    from diffit.restoration.operators.operator import LinearOperator

STEPS = 300
"""Beyond these a badly conditioned problem gains rounding errors rather than digits."""


def least_squares(
    operator: "LinearOperator", y: Tensor, rho: float | Tensor = 0.0, *, steps: int = STEPS
) -> Tensor:
    """argmin over x of |y - A x|^2 + rho |x|^2, started at 0: with rho = 0 the one of least norm.

    Args:
        operator: A, with its adjoint.
        y: (B, *measured).
        rho: a number or (B,), at least 0.
        steps: each takes one A and one adjoint. Images stop singly, when their gradient has
            fallen to rounding, so that none depends on its batch.
    """
    tolerance = 1e-12 if y.dtype == torch.float64 else 1e-6
    gradient = operator.adjoint(y)
    x = torch.zeros_like(gradient)
    residual, direction = y, gradient
    energy = first = _energy(gradient)
    for _ in range(steps):
        active = energy > tolerance**2 * first
        if not active.any():
            break
        image = operator(direction)
        curvature = _energy(image) + over(rho, energy) * _energy(direction)
        length = torch.where(active & (curvature > 0), energy / curvature, 0.0)
        x = x + over(length, x) * direction
        residual = residual - over(length, y) * image
        gradient = operator.adjoint(residual) - over(rho, x) * x
        before, energy = energy, torch.where(active, _energy(gradient), energy)
        direction = gradient + over(torch.where(active, energy / before, 0.0), x) * direction
    return x


def _energy(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)
