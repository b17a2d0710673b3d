"""Operators made of operators: one after the other, or side by side."""

import torch
from torch import Tensor

from diffit.restoration.operators.operator import LinearOperator, Operator
from diffit.restoration.operators.tensors import size


class Composed:
    """y = outer(inner(x)) where one of the two is not linear."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        self.outer, self.inner = outer, inner
        self.shape, self.measured = inner.shape, outer.measured

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def pinv(self, y: Tensor) -> Tensor:
        """The rough inverses one after the other."""
        for part in (self.outer, self.inner):
            if not hasattr(part, "pinv"):
                raise ValueError(f"{type(part).__name__} has no inverse, not even a rough one")
            y = part.pinv(y)
        return y


class ComposedLinear(LinearOperator):
    """y = outer(inner(x)) of two linear operators.

    Its pseudo-inverse and prox are iterative: the product of the two pseudo-inverses, which
    DDNM takes for it, is another matrix unless the inner one has orthonormal rows.
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        self.outer, self.inner = outer, inner
        self.shape, self.measured = inner.shape, outer.measured

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))


class Stacked:
    """y = (A1(x), A2(x), ...), flattened into one row."""

    def __init__(self, parts: tuple[Operator, ...]) -> None:
        self.parts, self.shape = parts, parts[0].shape
        self.measured: tuple[int, ...] = (sum(size(part.measured) for part in parts),)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], dim=1)


class StackedLinear(LinearOperator):
    """y = (A1 x, A2 x, ...) of linear operators, flattened into one row; inverses are iterative."""

    def __init__(self, parts: tuple[LinearOperator, ...]) -> None:
        self.parts, self.shape = parts, parts[0].shape
        self.measured: tuple[int, ...] = (sum(size(part.measured) for part in parts),)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        rows = torch.split(y, [size(part.measured) for part in self.parts], dim=1)
        images = [
            part.adjoint(row.reshape(len(y), *part.measured))
            for part, row in zip(self.parts, rows, strict=True)
        ]
        return torch.stack(images).sum(0)


def compose(outer: Operator, inner: Operator) -> Operator:
    """y = outer(inner(x)); linear if both are."""
    if tuple(inner.measured) != tuple(outer.shape):
        raise ValueError(f"the inner one gives {inner.measured}, the outer one takes {outer.shape}")
    if isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator):
        return ComposedLinear(outer, inner)
    return Composed(outer, inner)


def stack(*parts: Operator) -> Operator:
    """Several measurements of one image, as one; linear if all are."""
    if len({tuple(part.shape) for part in parts}) != 1:
        raise ValueError("operators that are stacked take images of one shape")
    linear = tuple(part for part in parts if isinstance(part, LinearOperator))
    if len(linear) == len(parts):
        return StackedLinear(linear)
    return Stacked(parts)
