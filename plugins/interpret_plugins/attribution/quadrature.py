"""Rules that replace an integral over [0, 1] by a weighted sum."""

from enum import StrEnum
from functools import lru_cache

import numpy
from numpy.polynomial.legendre import leggauss


class Quadrature(StrEnum):
    """Where a function is evaluated, and with which weights."""

    GAUSS_LEGENDRE = "gauss_legendre"  # exact for polynomials of degree 2 * steps - 1
    RIEMANN_MIDPOINT = "riemann_midpoint"  # the middles of equal parts
    TRAPEZOID = "trapezoid"  # both ends and equally spaced points between them


@lru_cache(maxsize=32)
def nodes(quadrature: Quadrature, steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Where to evaluate, ascending in [0, 1], and the weights, which sum to 1.

    Args:
        quadrature: the rule.
        steps: how many evaluations; at least 1, and 2 for the trapezoid rule.
    """
    match quadrature:
        case Quadrature.GAUSS_LEGENDRE:
            points, weights = leggauss(steps)
            points, weights = (points + 1) / 2, weights / 2
        case Quadrature.RIEMANN_MIDPOINT:
            points, weights = (numpy.arange(steps) + 0.5) / steps, numpy.full(steps, 1 / steps)
        case Quadrature.TRAPEZOID:
            points, weights = numpy.linspace(0, 1, steps), numpy.full(steps, 1 / (steps - 1))
            weights[[0, -1]] /= 2
    return tuple(points.tolist()), tuple(weights.tolist())
