"""Exponential integration of the probability flow: what DPM-Solver++ and UniPC have in common.

With lambda = -log sigma the flow from sigma to lower is solved by (arXiv:2211.01095, Eq. 8)

    x = (lower / sigma) x + lower * integral of e^lambda D d lambda.

Over a step, u runs from 0 to 1 and D is replaced by a polynomial in u through known estimates: at
u = 0 the current one, at u < 0 earlier ones, at u = 1 one ahead. What remains are the moments
integral of h e^(-h (1 - u)) u^k du, where h = log(sigma / lower).
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor


def moments(h: float, count: int) -> list[float]:
    """The first ``count`` moments of the kernel h e^(-h (1 - u)) over u in [0, 1]."""
    if h < 0.5:
        # The recursion below cancels at small h; e^(-h (1 - u)) as a series does not.
        return [_series(h, k) for k in range(count)]
    found = [-math.expm1(-h)]
    for k in range(1, count):
        found.append(1 - k * found[-1] / h)
    return found


def weights(nodes: Sequence[float], h: float) -> list[float]:
    """Of the estimates at the ``nodes``: their weights in the integral over the step.

    Exact where D is a polynomial of degree len(nodes) - 1 in u; local error O(h^(len(nodes) + 1)).
    """
    powers = np.vander(np.asarray(nodes), increasing=True).T
    found: list[float] = np.linalg.solve(powers, np.asarray(moments(h, len(nodes)))).tolist()
    return found


def combine(estimates: Sequence[Tensor], by: Sequence[float]) -> Tensor:
    """The weighted sum of some estimates."""
    total = by[0] * estimates[0]
    for weight, estimate in zip(by[1:], estimates[1:], strict=True):
        total = total + weight * estimate
    return total


def _series(h: float, k: int) -> float:
    """integral of h e^(-h (1 - u)) u^k = sum over j of (-1)^j h^(j + 1) k! / (k + 1 + j)!."""
    term, total = h / (k + 1), 0.0
    for j in range(1, 20):
        total += term
        term *= -h / (k + 1 + j)
    return total
