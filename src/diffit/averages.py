"""Moving averages of weights: how fast each forgets, and any length rebuilt afterwards.

Half-lives with a ramp are those of EDM (arXiv:2206.00364, appendix F.2); power-function averages
and their reconstruction are those of EDM2 (arXiv:2312.02696, section 3.1-3.2, appendix C).
"""

from collections.abc import Sequence

import numpy as np

LONGEST = 12**-0.5
"""Relative length of the plain mean (exponent 0): the longest power-function average."""


def half_life_decay(batch: int, before: int, half_life: int, ramp: float) -> float:
    """What a step of ``batch`` images keeps of an average, ``before`` images into the run.

    The half-life is never longer than ``ramp`` times the images seen; a ramp of 0 is none.
    """
    images = min(half_life, ramp * before) if ramp else half_life
    return float(0.5 ** (batch / images)) if images else 0.0


def power_decay(batch: int, after: int, length: float) -> float:
    """What the step that ends ``after`` images keeps of the average of a relative length."""
    return float((1 - batch / after) ** (exponent(length) + 1))


def exponent(length: float) -> float:
    """The exponent of the profile t^gamma whose relative width is ``length``.

    The width is (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2), its square the inverse of a
    cubic whose largest real root is the answer.
    """
    if not 0 < length < LONGEST:
        raise ValueError(f"length ({length}) must lie between 0 and {LONGEST:.4f}")
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots[np.isreal(roots)].real.max())


def blend(stored: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> list[float]:
    """Coefficients that combine stored averages into the wanted one, best in least squares.

    Args:
        stored: (images, length) of each stored power-function average.
        wanted: (images, length) of the average to rebuild; no later than the last stored one.
    """
    rows = [(float(images), exponent(length)) for images, length in stored]
    target = (float(wanted[0]), exponent(wanted[1]))
    products = np.array([[_overlap(a, b) for b in rows] for a in rows])
    aims = np.array([_overlap(row, target) for row in rows])
    # Times scale out; without it the products would be as small as 1 / images.
    scale = target[0]
    return [float(c) for c in np.linalg.lstsq(products * scale, aims * scale, rcond=1e-14)[0]]


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of the product of two profiles (gamma + 1) t^gamma / T^(gamma + 1)."""
    (time_a, gamma_a), (time_b, gamma_b) = sorted((a, b))
    # time_a is the smaller: the product ends there.
    ratio = (time_a / time_b) ** gamma_b
    return float((gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * time_b))
