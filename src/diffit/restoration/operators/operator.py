"""What an operator is: y = A x, and what a restoration method may ask of A.

Images are (B, C, H, W) in [-1, 1]. An operator works in the dtype and on the device of what it is
given; its own constants are float64.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffit.restoration.operators.least_squares import least_squares
from diffit.restoration.operators.tensors import over


@runtime_checkable
class Operator(Protocol):
    """y = A(x), differentiable. A nonlinear one may have ``pinv``, a rough inverse, too."""

    shape: tuple[int, ...]
    """(C, H, W) of one image x."""
    measured: tuple[int, ...]
    """Shape of one measurement y."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, *shape) to (B, *measured)."""
        raise NotImplementedError


@runtime_checkable
class LinearOperator(Operator, Protocol):
    """y = A x with its adjoint; the inverses are iterative unless a closed form is known."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y: (B, *measured) to (B, *shape)."""
        raise NotImplementedError

    def pinv(self, y: Tensor) -> Tensor:
        """A+ y, the least-squares solution of least norm: (B, *measured) to (B, *shape)."""
        return least_squares(self, y)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        """argmin over x of |y - A x|^2 + rho |x - z|^2; rho > 0 is a number or (B,)."""
        return z + least_squares(self, y - self(z), rho)


@runtime_checkable
class SpectralOperator(LinearOperator, Protocol):
    """A = U S V' with cheap U and V: everything else follows.

    The n = C H W right singular directions come in the order of ``vt``, which is any; so do the
    singular values, zero where nothing is measured.
    """

    singulars: Tensor
    """(n,) float64; (B, n) where the operator differs from image to image."""

    def vt(self, x: Tensor) -> Tensor:
        """V' x: (B, *shape) to (B, n)."""
        raise NotImplementedError

    def v(self, z: Tensor) -> Tensor:
        """V z: (B, n) to (B, *shape)."""
        raise NotImplementedError

    def ut(self, y: Tensor) -> Tensor:
        """U' y: (B, *measured) to (B, n), zero where the singular value is."""
        raise NotImplementedError

    def u(self, z: Tensor) -> Tensor:
        """U z: (B, n) to (B, *measured); entries with a singular value of zero are ignored."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        return self.u(self.singulars.to(x) * self.vt(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.v(self.singulars.to(y) * self.ut(y))

    def pinv(self, y: Tensor) -> Tensor:
        return self.v(inverse(self.singulars).to(y) * self.ut(y))

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        s = self.singulars.to(z)
        # As a correction to z, so that what is not measured stays as it is, to the bit.
        residual = self.ut(y) - s * self.vt(z)
        return z + self.v(s / (s**2 + over(rho, residual)) * residual)


def is_linear(operator: Operator) -> bool:
    """Whether an operator has an adjoint."""
    return isinstance(operator, LinearOperator)


def is_spectral(operator: Operator) -> bool:
    """Whether an operator has its singular value decomposition."""
    return isinstance(operator, SpectralOperator)


def inverse(singulars: Tensor) -> Tensor:
    """1 / s, and 0 where s is 0."""
    return torch.where(singulars > 0, 1 / singulars, 0.0)
